"""Several runs of layers per lane."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.schedule import Costs, Problem, Routes, build, simulate
from trainsys.schedule.generators.interleaved import generate


@pytest.mark.parametrize(("stages", "vp", "groups"), list(itertools.product((1, 2, 3, 4), (2, 3), (1, 2, 5))))
def test_bubble_and_memory_are_the_published_ones(stages: int, vp: int, groups: int) -> None:
    """Narayanan et al. 2021, section 2.2.2: the bubble is (P - 1)·(tF + tB)/vp of a step of m·(tF + tB)."""
    m = stages * groups
    run = simulate(build("interleaved", Routes.balanced(m, [1] * stages, vp), vp),
                   Costs([1 / vp] * stages * vp, [2 / vp] * stages * vp))  # fmt: skip
    assert run.step_s == pytest.approx(3 * m + 3 * (stages - 1) / vp)
    most = [min(m * vp, 2 * (stages - 1 - s) + (vp - 1) * stages + 1) for s in range(stages)]
    assert all(peak <= limit for peak, limit in zip(run.peak_activations, most, strict=True))


def test_order_of_a_known_lane() -> None:
    """P = 2, vp = 2, m = 2: both microbatches through run 0, then through run 1, and back from run 1."""
    lane = generate(Problem(Routes.balanced(2, [1, 1], 2), 2)).lanes[1]
    assert " ".join(map(str, lane)) == "1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(2, 3), st.integers(0, 9))
def test_ragged_pipelines_end(replicas: list[int], vp: int, more: int) -> None:
    """`build` verifies: complete, matched, without cyclic waits; every stage's runs share its lanes."""
    routes = Routes.balanced(max(replicas) + more, replicas, vp)
    for name in ("interleaved", "gpipe"):
        schedule = build(name, routes, vp)
        assert schedule.num_lanes == sum(replicas)
        for (stage, replica), lane in schedule.placement.items():
            assert lane == schedule.placement[stage % len(replicas), replica]


def test_a_lost_replica_costs_little_time_and_no_memory() -> None:
    """GPipe keeps everything alive, so it never waits for memory: the yardstick."""
    slower = []
    for replicas in ([8, 8, 7, 8], [4, 4, 4, 3], [3, 4, 4, 4], [4, 4, 3, 4], [2, 1, 2], [5, 4, 3, 2]):
        for vp in (2, 4):
            routes = Routes.balanced(32 * max(replicas), replicas, vp)
            f_s = [1 / r / vp for r in replicas] * vp
            costs = Costs(f_s, [2 * t for t in f_s])
            ours, yardstick = (simulate(build(name, routes, vp), costs) for name in ("interleaved", "gpipe"))
            slower.append(ours.step_s / yardstick.step_s)
            assert max(ours.peak_activations) < 0.3 * max(yardstick.peak_activations)
    assert sum(slower) / len(slower) < 1.03
    assert max(slower) < 1.09


@pytest.mark.parametrize("m", [5, 18, 30, 37])
def test_any_number_of_microbatches_is_as_fast_as_gpipe(m: int) -> None:
    """Narayanan et al. ask for multiples of P."""
    costs = Costs([1 / 2] * 8, [1.0] * 8)
    ours, yardstick = (simulate(build(n, Routes.balanced(m, [1] * 4, 2), 2), costs) for n in ("interleaved", "gpipe"))
    assert ours.step_s == yardstick.step_s


def test_1f1b_has_one_run_per_stage() -> None:
    with pytest.raises(
        ValueError, match=r"1f1b has one run of layers per stage, not parallel.vp=2; set parallel\.schedule"
    ):
        build("1f1b", Routes.balanced(4, [1, 1], 2), 2)
