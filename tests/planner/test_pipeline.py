"""The simulated pipeline: closed forms, and continuation from its period."""

import random

import pytest

from trainsys.planner.in_flight import FORMS
from trainsys.planner.lane_order import lane_order, lane_times
from trainsys.planner.pipeline import hop_lists, least_ends, most_in_flight, run_pipeline
from trainsys.schedule import Costs, Routes, build, simulate

Case = tuple[str, int, int, int]  # schedule, stages, runs of layers each, microbatches
CASES = [
    (name, stages, vp, microbatches)
    for name in FORMS
    for stages in (2, 3, 4, 7)
    for vp in ((1,) if name == "1f1b" else (2, 3) if name == "interleaved" else (1, 2))
    for microbatches in (1, 2, 4, 7, 8, 13)
]


def costs(case: Case, hop: float) -> tuple[tuple[float, ...], tuple[float, ...], dict[tuple[int, int], float]]:
    """F and B of every run, and messages, of unequal length."""
    _, stages, vp, _ = case
    draw = random.Random(str(case))
    f_s = tuple(draw.uniform(1, 2) for _ in range(stages * vp))
    pairs = ((a, b) for a in range(stages) for b in range(stages) if a != b)
    return f_s, tuple(draw.uniform(1.5, 2.5) * f for f in f_s), {pair: hop * draw.uniform(0.5, 1.5) for pair in pairs}


def ends(case: Case, f_s, b_s, hops) -> list[float]:
    """The end of each lane's last F or B, by events."""
    name, stages, vp, microbatches = case
    schedule = build(name, Routes.balanced(microbatches, (1,) * stages, vp), vp)
    run = simulate(schedule, Costs(f_s, b_s, send_s=lambda a, b: hops[a, b]))
    return [max(e.end_s for e in run.events if e.lane == lane and e.action.is_compute) for lane in range(stages)]


@pytest.mark.parametrize("hop", [0.0, 0.3, 3.0])
def test_without_events_the_times_are_those_with_events(hop):
    """Two lanes with several runs share a link in an order that only events decide: there events are used."""
    for case in CASES:
        name, stages, vp, microbatches = case
        if stages == 2 and vp > 1:
            continue
        f_s, b_s, hops = costs(case, hop)
        order = lane_order(name, microbatches, stages, vp)
        times = lane_times(order, microbatches, stages, f_s, b_s, *hop_lists(hops, stages))
        assert times == pytest.approx(ends(case, f_s, b_s, hops), rel=1e-12), case


@pytest.mark.parametrize("hop", [0.0, 0.3])
def test_no_stage_ends_sooner_than_the_bound(hop):
    for case in CASES:
        name, stages, _, microbatches = case
        f_s, b_s, hops = costs(case, hop)
        least = least_ends(name, microbatches, stages, f_s, b_s, *hop_lists(hops, stages))
        assert all(a <= b * (1 + 1e-12) for a, b in zip(least, ends(case, f_s, b_s, hops), strict=True)), case


def test_the_bound_of_equal_stages_is_the_closed_form():
    """(m + (P - 1)/v)(f + b): the bound leaves nothing to simulate."""
    for name, vp in (("1f1b", 1), ("gpipe", 1), ("interleaved", 3)):
        f_s = (1 / vp,) * 4 * vp
        least = least_ends(name, 12, 4, f_s, tuple(2 * f for f in f_s), [0.0] * 4, [0.0] * 4)
        assert max(least) == pytest.approx((12 + 3 / vp) * 3)


def test_activations_in_flight_in_closed_form():
    """As many as the schedule itself keeps, lane by lane."""
    for name, stages, vp, microbatches in CASES:
        schedule = build(name, Routes.balanced(microbatches, (1,) * stages, vp), vp)
        ones = (1.0,) * stages * vp
        assert FORMS[name](microbatches, stages, vp) == simulate(schedule, Costs(ones, ones)).peak_activations


@pytest.mark.parametrize(("name", "stages", "vp"), [("1f1b", 48, 1), ("interleaved", 16, 4)])
def test_a_deep_pipeline_is_continued_from_its_period(name, stages, vp):
    """Eight microbatches per stage and a slow last stage, from six per stage."""
    f_s = (1.0,) * (stages * vp - 1) + (1.2,)
    b_s, hops = tuple(2 * f for f in f_s), {(a, b): 0.1 for a in range(stages) for b in range(stages)}
    order = lane_order(name, 8 * stages, stages, vp)
    whole = lane_times(order, 8 * stages, stages, f_s, b_s, *hop_lists(hops, stages))
    assert 8 * stages * stages * vp > 2048  # longer than what is simulated whole
    assert run_pipeline(name, 8 * stages, (1,) * stages, f_s, b_s, hops).step_s == pytest.approx(max(whole), rel=0.005)


@pytest.mark.parametrize("schedule", [name for name in FORMS if name != "interleaved"])
@pytest.mark.parametrize(("stages", "microbatches"), [(2, 4), (4, 8), (4, 100)])
def test_equal_stages_without_messages_meet_the_closed_form(schedule, stages, microbatches):
    """(m + P - 1)(f + b): Narayanan et al. 2021 (arXiv:2104.04473), §2.2."""
    run = run_pipeline(schedule, microbatches, (1,) * stages, (1.0,) * stages, (2.0,) * stages)
    assert run.step_s == pytest.approx((microbatches + stages - 1) * 3)
    assert run.bubble == pytest.approx((stages - 1) / (microbatches + stages - 1))


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
@pytest.mark.parametrize("stages", [2, 3, 8])
@pytest.mark.parametrize("hop", [0.0, 0.05, 0.3, 0.9])
def test_a_long_step_is_continued_from_short_ones(schedule, stages, hop):
    random.seed(stages)
    f_s = tuple(random.uniform(1, 2) for _ in range(stages))
    b_s = tuple(2 * f for f in f_s)
    hops = {(a, b): hop for a in range(stages) for b in range(stages) if abs(a - b) == 1}
    long = simulate(build(schedule, Routes.balanced(90, (1,) * stages)), Costs(f_s, b_s, send_s=hop))
    run = run_pipeline(schedule, 90, (1,) * stages, f_s, b_s, hops)
    assert run.step_s == pytest.approx(long.step_s, rel=0.005)
    assert run.bubble == pytest.approx(long.bubble, abs=0.005)
    assert run.in_flight == long.peak_activations


@pytest.mark.parametrize(("stages", "vp", "microbatches"), [(2, 2, 6), (4, 2, 96), (4, 3, 100)])
def test_runs_of_layers_shorten_the_bubble(stages, vp, microbatches):
    """(m + (P - 1)/v)(f + b) for whole groups of P microbatches: Narayanan et al. 2021, §2.2.2."""
    f_s = (1 / vp,) * stages * vp
    run = run_pipeline("interleaved", microbatches, (1,) * stages, f_s, tuple(2 * f for f in f_s))
    assert run.step_s == pytest.approx((microbatches + (stages - 1) / vp) * 3)
    assert len(run.ends_s) == len(run.busy_s) == stages


@pytest.mark.parametrize("microbatches", [88, 90])
def test_an_interleaved_step_is_continued_from_short_ones(microbatches):
    f_s = (1.0, 1.2, 0.8, 1.1, 0.9, 1.0)
    b_s, hops = tuple(2 * f for f in f_s), {(a, b): 0.1 for a in range(3) for b in range(3) if a != b}
    long = simulate(build("interleaved", Routes.balanced(microbatches, (1,) * 3, 2), 2), Costs(f_s, b_s, send_s=0.1))
    run = run_pipeline("interleaved", microbatches, (1,) * 3, f_s, b_s, hops)
    assert run.step_s == pytest.approx(long.step_s, rel=0.005)
    assert run.in_flight == long.peak_activations


def test_activations_in_flight():
    assert most_in_flight("1f1b", 500, (1, 1, 1, 1), 1) == (4, 3, 2, 1)
    assert most_in_flight("gpipe", 500, (1, 1, 1, 1), 1) == (500,) * 4
    assert most_in_flight("1f1b", 8, (1,), 1) == (1,)


def test_ragged_replicas():
    """One replica of stage 1 serves two of stage 0: it computes all microbatches and ends the step."""
    run = run_pipeline("1f1b", 8, (2, 1), (1.0, 1.0), (2.0, 2.0))
    assert run.busy_s == pytest.approx((12.0, 24.0))
    assert run.step_s >= 24 + 1 + 2
