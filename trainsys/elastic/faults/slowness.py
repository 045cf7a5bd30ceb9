"""A rank that computes slower: what its own thread computed is slept again, so many times."""

from __future__ import annotations

import time

from trainsys.elastic.faults.event import FaultEvent

_COMPUTES = ("forward", "backward")


class Slowness:
    """Between entering a phase that computes and the next one the thread's own seconds count, not those it waited.

    Args:
        event: a ``slow``.
        step: in which it begins.
    """

    def __init__(self, event: FaultEvent, step: int) -> None:
        self._more = event.factor - 1
        self._until = step + event.steps if event.steps else None
        self._since: float | None = None

    def at(self, phase: str, step: int) -> bool:
        """Entering `phase`. Returns whether it goes on."""
        if self._since is not None:
            time.sleep(self._more * max(0.0, time.thread_time() - self._since))
        self._since = time.thread_time() if phase in _COMPUTES else None
        return self._until is None or step < self._until
