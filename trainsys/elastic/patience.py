"""How long a change may take: a heart can beat in a process whose main thread stands still."""

from __future__ import annotations

from collections.abc import Hashable

_TURN_S = 1.0  # a longer turn of the caller's loop is time in which its process did not run


class Patience:
    """Counts the time spent in one stage of a change, as far as this process itself ran."""

    def __init__(self) -> None:
        self._stage: Hashable = None
        self._seen = self._waited_s = 0.0

    def waited_s(self, stage: Hashable, now: float) -> float:
        """Seconds since `stage` was first named; call it in every turn of the loop."""
        if stage != self._stage:
            self._stage, self._waited_s = stage, 0.0
        else:
            self._waited_s += min(now - self._seen, _TURN_S)
        self._seen = now
        return self._waited_s
