"""The simulated pipeline: closed forms, and continuation from its period."""

import random

import pytest

from trainsys.planner.pipeline import most_in_flight, run_pipeline
from trainsys.schedule import GENERATORS, Costs, Routes, build, simulate


@pytest.mark.parametrize("schedule", [name for name in GENERATORS if name != "interleaved"])
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
