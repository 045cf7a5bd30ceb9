"""Work of another thread that shall not queue behind what computes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import torch

from trainsys.comm.waiting import run_elsewhere


def on_own_stream(device: torch.device, work: Callable[[], None], after: Future[None] | None = None) -> None:
    """Run `work` to its end, once `after` is done; on a GPU behind what is queued now, and beside what comes later.

    Args:
        device: of the tensors at work, which need not be the thread's current one.
    """
    if after is not None:
        after.result()
    if device.type != "cuda":
        work()
        return
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            work()
        stream.synchronize()


class Once:
    """Work that is done once, in another thread, from when it is begun or its result is first asked for.

    What it refers to, it keeps until it is done and no longer.
    """

    def __init__(self, device: torch.device, work: Callable[[], None]) -> None:
        self._device, self._lock, self._done = device, threading.Lock(), Future[None]()
        self._work: Callable[[], None] | None = work

    def begin(self) -> None:
        """Does nothing if it was begun before; from any thread."""
        with self._lock:
            if not self._done.running() and not self._done.done():
                self._done.set_running_or_notify_cancel()
                try:
                    run_elsewhere(self._run)
                except RuntimeError:  # no thread is to be had
                    self._run()

    def result(self) -> None:
        """Wait for its end; raises what went wrong."""
        self.begin()
        self._done.result()

    def _run(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        try:
            on_own_stream(self._device, work)
        except Exception as error:
            self._done.set_exception(error)
        else:
            del work  # before anybody is told that it is done
            self._done.set_result(None)
