"""Executor, messages and simulator together: stages that sleep overlap as the schedule says.

How close the step comes to the prediction is measured by ``trainsys bench schedules``; a busy machine may be late here.
"""

from __future__ import annotations

import pytest

from benchmarks.schedules import VP, body, scheduled
from trainsys.schedule.simulate import simulate
from trainsys.testing import RankPool

P, M, T = 4, 8, 0.040


@pytest.mark.parametrize(
    ("name", "peaks"), [("gpipe", [8, 8, 8, 8]), ("1f1b", [4, 3, 2, 1]), ("interleaved", [11, 9, 7, 5])]
)
def test_stages_overlap_as_simulated(ranks: RankPool, name: str, peaks: list[int]) -> None:
    predicted = simulate(*scheduled(name, M, P, T))
    assert predicted.step_s == pytest.approx((M + (P - 1) / VP.get(name, 1)) * 3 * T)
    assert list(predicted.peak_activations) == peaks
    results = ranks.run(body, P, name, M, T, 3)
    assert [r["peak"] for r in results] == peaks
    steps = [max(r["spans"][k][1] for r in results) - min(r["spans"][k][0] for r in results) for k in range(3)]
    assert min(steps) >= 0.999 * predicted.step_s  # nobody computes before its input is there
    assert min(steps) < 0.5 * M * P * 3 * T  # one after the other it would take the whole of that
