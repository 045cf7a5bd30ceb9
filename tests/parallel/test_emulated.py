"""Executor, messages and simulator together: stages that sleep overlap as the schedule says.

How close the step comes to the prediction is measured by ``trainsys bench schedules``; a busy machine may be late here.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks._clock import Span, span
from benchmarks._schedules_run import cases, repeated
from benchmarks.schedules import row
from trainsys.comm.communicator import Communicator
from trainsys.parallel.executor import Executor
from trainsys.schedule import Costs, Routes, Schedule, build, simulate
from trainsys.testing import RankPool
from trainsys.testing.emulated import EmulatedStage

P, M, T = 4, 8, 0.025
VP = {"interleaved": 2}


def scheduled(name: str) -> tuple[Schedule, Costs]:
    """F takes T per rank, shared among its stages; B twice as long."""
    vp = VP.get(name, 1)
    f_s = [T / vp] * P * vp
    return build(name, Routes.balanced(M, [1] * P, vp), vp), Costs(f_s, [2 * f for f in f_s])


def body(rank: int, world_size: int, store: Any, name: str) -> tuple[list[Span], int]:
    """One rank: start and end of two steps on the common clock, and the peak of live activations."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group, (schedule, costs) = comm.group(members), scheduled(name)
    last = schedule.routes.num_stages - 1
    runners = {
        s: EmulatedStage(costs.f_s[s], costs.b_s[s], s == 0, s == last) for s in range(rank, last + 1, world_size)
    }
    executor = Executor(schedule, rank, runners, group, dict(enumerate(members)))
    spans = [span(group, executor.run) for _ in range(3)]  # the first connects and warms up
    comm.close()
    return spans[1:], executor.peak_activations


@pytest.mark.parametrize(
    ("name", "peaks"), [("gpipe", [8, 8, 8, 8]), ("1f1b", [4, 3, 2, 1]), ("interleaved", [11, 9, 7, 5])]
)
def test_stages_overlap_as_simulated(ranks: RankPool, name: str, peaks: list[int]) -> None:
    predicted = simulate(*scheduled(name))
    assert predicted.step_s == pytest.approx((M + (P - 1) / VP.get(name, 1)) * 3 * T)
    assert list(predicted.peak_activations) == peaks
    results = ranks.run(body, P, name)
    assert [peak for _, peak in results] == peaks
    spans = [each for each, _ in results]
    steps = [max(e for _, e in one) - min(s for s, _ in one) for one in zip(*spans, strict=True)]
    assert min(steps) >= 0.999 * predicted.step_s  # nobody computes before its input is there
    assert min(steps) < 0.5 * M * P * 3 * T  # one after the other it would take the whole of that


@pytest.mark.parametrize("name", ["1f1b", "torch ZBV"])
def test_both_engines_take_no_less_than_is_simulated(ranks: RankPool, name: str) -> None:
    (case,) = cases(2, 4, (name,))
    found = row(ranks, case, 0.004, repeat=1, steps=2)
    for engine in ("", "torch_"):
        assert found[f"{engine}measured_s"] >= 0.999 * found["simulated_s"]
        assert found[f"{engine}in_a_row_s"] >= 0.999 * found["in_a_row_simulated_s"]
    assert found["overhead_per_action_ms"] > 0
    assert found["overhead_ratio"] == pytest.approx(
        found["overhead_per_action_ms"] / found["torch_overhead_per_action_ms"]
    )


def test_only_without_a_barrier_is_zero_bubble_zero() -> None:
    (case,) = cases(P, M, ("zbv",))
    costs = Costs([1.0] * 2 * P, [2.0] * 2 * P)
    one, ten, eleven = (simulate(repeated(case.schedule, times), costs).step_s for times in (1, 10, 11))
    assert one > M * 6  # F, I and W of both of a rank's stages
    assert eleven - ten == pytest.approx(M * 6)
