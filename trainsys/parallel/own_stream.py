"""Work of another thread that shall not queue behind what computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch

from trainsys.comm.waiting import run_elsewhere


def on_own_stream(work: Callable[[], None], after: Future[None] | None = None) -> None:
    """Run `work` to its end, once `after` is done; on a GPU behind what is queued now, and beside what comes later."""
    if after is not None:
        after.result()
    if not torch.cuda.is_available():
        work()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.default_stream())
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()


class Once:
    """Work that is done once, in another thread, from when it is begun or its result is first asked for."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._lock, self._done = work, threading.Lock(), Future[None]()

    def begin(self) -> None:
        """Does nothing if it was begun before; from any thread."""
        with self._lock:
            if not self._done.running() and not self._done.done():
                self._done.set_running_or_notify_cancel()
                run_elsewhere(self._run)

    def result(self) -> None:
        """Wait for its end; raises what went wrong."""
        self.begin()
        self._done.result()

    def _run(self) -> None:
        try:
            on_own_stream(self._work)
        except Exception as error:
            self._done.set_exception(error)
        else:
            self._done.set_result(None)
