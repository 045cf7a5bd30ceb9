"""Waiting for gloo from a thread that can be left behind.

When a connection ends, gloo's TCP pairs tell the operations that have not begun, but neither a message half read nor
one half written (``Pair::signalException`` in transport/tcp/pair.cc): who waits for that one sits out the timeout. So
the caller waits on a queue, another thread waits for gloo, and an abort answers in gloo's place. The thread left
behind holds the operation's buffers until its own timeout, then serves again. A thread without work for `IDLE_S` ends:
a moment in which many wait leaves nothing behind.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from torch._C._distributed_c10d import Work

Answers = SimpleQueue[str]  # one per operation, in order: "" or what went wrong
_Orders = SimpleQueue[Callable[[], None]]

IDLE_S = 2.0  # longer than most steps; starting a thread takes some 0.1 ms

_SOURCE = re.compile(r"^\[[^\]]*\.(cc|cpp|h):\d+\] ")
_idle: list[_Orders] = []  # threads with nothing to do, who served last at the end


def wait_elsewhere(works: Sequence[Work], answers: Answers, wait: Callable[[Work], str]) -> None:
    """Have every one of `works` waited for in turn; each outcome is put into `answers`, up to the first failure.

    Args:
        wait: `outcome`, or what does more.
    """
    run_elsewhere(lambda: _wait_in_turn(works, answers, wait))


def run_elsewhere(task: Callable[[], None]) -> None:
    """Have a thread with nothing to do run `task`, which tells of its own errors.

    Raises RuntimeError where the system has no thread left.
    """
    try:
        orders = _idle.pop()
    except IndexError:
        orders = SimpleQueue()
        threading.Thread(target=_serve, args=(orders,), daemon=True, name="gloo-wait").start()
    orders.put(task)


def _serve(orders: _Orders) -> None:
    while _serve_one(orders):
        _idle.append(orders)


def _serve_one(orders: _Orders) -> bool:
    """Run the next task, and hold nothing of it then: a group lives as long as its operations. False: none came."""
    try:
        task = orders.get(timeout=IDLE_S)
    except Empty:
        try:
            _idle.remove(orders)
        except ValueError:  # taken at this moment: its order is on the way
            task = orders.get()
        else:
            return False
    task()
    return True


def _wait_in_turn(works: Sequence[Work], answers: Answers, wait: Callable[[Work], str]) -> None:
    for work in works:
        error = wait(work)
        answers.put(error)
        if error:
            return


def outcome(work: Work) -> str:
    """Wait for an operation; what went wrong, or nothing."""
    try:
        work.wait()
    except RuntimeError as error:
        return brief(error)
    return ""


def brief(error: Exception) -> str:
    """A backend's error in one line: without the place in its sources, its general advice and its good wishes."""
    line = _SOURCE.sub("", (str(error).splitlines() or [""])[0])
    return line.partition(". This is typically")[0] or repr(error)
