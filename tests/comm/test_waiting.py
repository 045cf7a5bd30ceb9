"""Threads that wait in another's place, and what is said of a backend's errors."""

import random
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue

import pytest

from trainsys.comm import waiting
from trainsys.comm.waiting import brief, run_elsewhere


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of other tests serve none of these."""
    monkeypatch.setattr(waiting, "_idle", [])


def _until(holds: Callable[[], bool]) -> bool:
    """Whether it does within 10 s."""
    until = time.monotonic() + 10
    while not holds() and time.monotonic() < until:
        time.sleep(0.005)
    return holds()


def test_a_thread_with_nothing_to_do_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "IDLE_S", 0.2)
    go, done = threading.Event(), SimpleQueue[threading.Thread]()
    for _ in range(8):
        run_elsewhere(lambda: done.put(threading.current_thread()) if go.wait(10) else None)
    go.set()
    served = [done.get(timeout=10) for _ in range(8)]
    assert len(set(served)) == 8, "eight wait at once"
    assert _until(lambda: not any(thread.is_alive() for thread in served)), "who waited once stays for ever"


def test_one_thread_serves_one_task_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "IDLE_S", 60.0)
    served = SimpleQueue[threading.Thread]()
    run_elsewhere(lambda: served.put(threading.current_thread()))
    first = served.get(timeout=10)
    for _ in range(20):
        assert _until(lambda: len(waiting._idle) > 0)
        run_elsewhere(lambda: served.put(threading.current_thread()))
    assert {served.get(timeout=10) for _ in range(20)} == {first}


def test_a_thread_with_nothing_to_do_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Task:
        def __call__(self) -> None:
            pass

    monkeypatch.setattr(waiting, "IDLE_S", 60.0)
    task = Task()
    held = weakref.ref(task)
    run_elsewhere(task)
    del task
    assert _until(lambda: held() is None)


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
