"""The governor: no stage longer than the longest, bubbles gone, and never more energy for the same time."""

from __future__ import annotations

from random import Random

import pytest

from trainsys.planner.clocks import Clock, govern, slowdowns


def test_even_stages_stay_as_they_are() -> None:
    assert govern([2.0, 2.0, 2.0], [Clock()] * 3) == pytest.approx((1.0, 1.0, 1.0))


def test_who_has_more_to_do_gets_faster_and_who_waits_slower() -> None:
    cap = Clock(lowest=0.3)
    clocks = govern([1.0, 1.2, 1.0], [cap] * 3)
    assert clocks[1] == cap.highest
    assert clocks[0] < 1 and clocks[2] < 1
    times = [s * slow for s, slow in zip([1.0, 1.2, 1.0], slowdowns(clocks, [cap] * 3), strict=True)]
    assert max(times) < 1.2
    assert min(times) == pytest.approx(max(times))


@pytest.mark.parametrize("seed", range(10))
def test_no_clock_can_fall_without_a_longer_step(seed: int) -> None:
    dice = Random(seed)
    caps = [Clock(bound=dice.uniform(0, 0.6), lowest=dice.uniform(0.2, 0.9)) for _ in range(4)]
    stage_s = [dice.uniform(1, 3) for _ in caps]
    clocks = govern(stage_s, caps)
    times = [s * slow for s, slow in zip(stage_s, slowdowns(clocks, caps), strict=True)]
    assert max(times) <= max(stage_s) * (1 + 1e-12)
    for time_s, clock, cap in zip(times, clocks, caps, strict=True):
        assert cap.lowest <= clock <= cap.highest
        assert time_s == pytest.approx(max(times)) or clock == cap.lowest
    energy = sum(c.energy_j(t, k, max(times)) for c, t, k in zip(caps, times, clocks, strict=True))
    # the same step with everybody else at the clock of the fastest takes more
    others = [max(clocks[i], min(1.0, cap.highest)) for i, cap in enumerate(caps)]
    eager = [s * slow for s, slow in zip(stage_s, slowdowns(others, caps), strict=True)]
    assert energy <= sum(c.energy_j(t, k, max(times)) for c, t, k in zip(caps, eager, others, strict=True)) + 1e-9


def test_time_and_clock_are_inverse() -> None:
    cap = Clock()
    for clock in (cap.lowest, 0.8, 1.0, cap.highest):
        assert cap.clock_for(cap.slowdown(clock)) == pytest.approx(clock)
    with pytest.raises(ValueError, match="nominal"):
        Clock(lowest=1.1)
