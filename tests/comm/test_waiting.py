"""Threads that wait in another's place, and what is said of a backend's errors."""

import random
import threading
import time
import weakref
from functools import partial
from queue import SimpleQueue

import pytest

from trainsys.comm import waiting
from trainsys.comm.waiting import IDLE_S, brief, run_elsewhere


def _waiting() -> int:
    return sum(thread.name == "gloo-wait" for thread in threading.enumerate())


def test_a_thread_with_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "IDLE_S", 0.2)
    before, go, done = _waiting(), threading.Event(), SimpleQueue[None]()
    for _ in range(8):
        run_elsewhere(lambda: done.put(None) if go.wait() else None)
    assert _waiting() >= 8, "eight wait at once"
    go.set()
    for _ in range(8):
        done.get(timeout=5)
    until = time.monotonic() + 10
    while _waiting() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert _waiting() <= before, "who waited once stays for ever"


def test_one_thread_serves_one_task_after_the_other() -> None:
    served = SimpleQueue[int]()
    for _ in range(20):
        run_elsewhere(lambda: served.put(threading.get_ident()))
        time.sleep(0.01)
    assert len({served.get(timeout=5) for _ in range(20)}) <= 3


def test_a_thread_with_nothing_to_do_holds_nothing() -> None:
    class Task:
        def __call__(self) -> None:
            pass

    task = Task()
    held = weakref.ref(task)
    run_elsewhere(task)
    del task
    until = time.monotonic() + IDLE_S / 2
    while held() is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert held() is None


def test_no_task_is_lost_to_a_thread_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "IDLE_S", 0.001)
    draw, done = random.Random(0), SimpleQueue[int]()
    for i in range(1000):
        run_elsewhere(partial(done.put, i))
        time.sleep(draw.uniform(0.0005, 0.0015))
    assert sorted(done.get(timeout=5) for _ in range(1000)) == list(range(1000))


def test_an_error_is_told_in_one_line_without_its_source() -> None:
    gloo = (
        "[/build/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:46757: Connection reset by peer. This is "
        "typically caused by a remote worker hanging or bugs in the application. GLHF!\nframe #0"
    )
    assert brief(RuntimeError(gloo)) == "Read error [127.0.0.1]:46757: Connection reset by peer"
    assert brief(ValueError("no room for it")) == "no room for it"
