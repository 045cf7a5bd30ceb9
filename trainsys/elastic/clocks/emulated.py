"""The clock of an emulated stage, which sleeps for as long as it would compute at that clock."""

from __future__ import annotations

from trainsys.planner.clocks import Clock


class Emulated:
    """A number."""

    cap = Clock()
    slowdown = 1.0

    def set(self, clock: float) -> None:
        """From now on the stage takes as long as the model of `cap` says."""
        self.slowdown = self.cap.slowdown(clock)

    def reset(self) -> None:
        """To the nominal clock."""
        self.slowdown = 1.0


def open_clock(device: int) -> Emulated:
    """Of any device."""
    return Emulated()
