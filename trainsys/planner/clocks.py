"""Clocks of devices: power and speed by frequency, and which stage should run how fast so that none waits.

Power of CMOS is a static part and one that goes with C·V²·f; voltage goes with frequency near the top of its range, so
that the dynamic part goes with f³ (Chandrakasan et al. 1992, low-power CMOS digital design, §II). Work that waits for
memory does not get faster with the core's clock (roofline), so a time is a share that goes with 1/f and one that does
not. ElasWave (arXiv:2510.00606) raises the clock of the stage that got more work. Clocks are fractions of the nominal
one; the numbers of the default `Clock` are assumed, of a large accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """One kind of device.

    Attributes:
        lowest, highest: clocks that it may have; 1 is the nominal one.
        static_w: power that it takes at any clock.
        dynamic_w: what computing adds at the nominal clock.
        bound: share of the time at the nominal clock that waits for memory, whatever the clock.
    """

    lowest: float = 0.5
    highest: float = 1.15
    static_w: float = 100.0
    dynamic_w: float = 300.0
    bound: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= 1 <= self.highest:
            raise ValueError(f"clocks from {self.lowest:g} to {self.highest:g} do not include the nominal clock, 1")
        if not 0 <= self.bound < 1:
            raise ValueError(f"a share of {self.bound:g} that waits for memory is not in [0, 1)")

    def slowdown(self, clock: float) -> float:
        """How many times as long work takes at `clock` as at the nominal one."""
        return self.bound + (1 - self.bound) / clock

    def clock_for(self, slowdown: float) -> float:
        """The clock at which work takes `slowdown` times as long, as far as there is one."""
        wanted = (1 - self.bound) / (slowdown - self.bound) if slowdown > self.bound else self.highest
        return min(self.highest, max(self.lowest, wanted))

    def energy_j(self, busy_s: float, clock: float, step_s: float) -> float:
        """Of one step of `step_s`, of which the device computes for `busy_s` at `clock`."""
        return self.static_w * step_s + self.dynamic_w * clock**3 * busy_s


def govern(stage_s: Sequence[float], caps: Sequence[Clock]) -> tuple[float, ...]:
    """Clocks under which no stage waits for another.

    The longest stage runs as fast as it may; the others as slowly as they can without getting longer than the
    longest one then is. Power grows faster than speed, so that is also least energy at that time.

    Args:
        stage_s: seconds of each stage at the nominal clock.
        caps: of each stage's devices.
    """
    least = max(s * cap.slowdown(cap.highest) for s, cap in zip(stage_s, caps, strict=True))
    # no stage gets faster than all would be if they had equally much to do: that saves no bubble
    target = max(least, sum(stage_s) / len(stage_s))
    return tuple(cap.clock_for(target / s) if s > 0 else cap.lowest for s, cap in zip(stage_s, caps, strict=True))


def settled(
    clocks: Sequence[float], step_of: Callable[[Sequence[float]], float], limit_s: float, parts: int = 20
) -> tuple[float, ...]:
    """`clocks` with a floor under them, as low as the step allows: a stage that waits at times is not one that always
    may, since a pipeline fills and drains through every stage.

    Args:
        step_of: seconds of a step under such clocks, for instance simulated.
        limit_s: how long it may take.
        parts: floors tried from 1, the nominal clock, down to the lowest of `clocks`.

    Returns:
        Those with the lowest floor; with floor 1 even if that takes longer.
    """
    least, best = min(clocks), tuple(max(1.0, clock) for clock in clocks)
    for part in range(1, parts + 1):
        floor = 1 + (least - 1) * part / parts
        lower = tuple(max(floor, clock) for clock in clocks)
        if step_of(lower) > limit_s * (1 + 1e-9):
            break
        best = lower
    return best


def slowdowns(clocks: Sequence[float], caps: Sequence[Clock]) -> tuple[float, ...]:
    """How many times as long each stage takes at these clocks."""
    return tuple(cap.slowdown(clock) for clock, cap in zip(clocks, caps, strict=True))
