"""P(OOM) is fitted on what `trainsys validate` says of the published peaks."""

from __future__ import annotations

from math import log, pi, sqrt, tanh
from pathlib import Path
from statistics import fmean, stdev

import pytest

from trainsys.planner.risk import BIAS, PEAKS, SPREAD, oom_probability
from trainsys.validate.metrics import Prediction, predict
from trainsys.validate.rows import read_all

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"


@pytest.fixture(scope="module")
def predictions() -> list[Prediction]:
    return [predict(row) for row in read_all([PUBLISHED])[0]]


@pytest.fixture(scope="module")
def errors(predictions: list[Prediction]) -> list[float]:
    """ln(measured / predicted) of every published peak."""
    return [log(p.row.peak_gib / p.peak_gib) for p in predictions if p.row.peak_gib]


def test_bias_and_spread_are_those_of_the_published_peaks(errors: list[float]) -> None:
    assert len(errors) == PEAKS
    assert fmean(errors) == pytest.approx(BIAS, abs=1e-4)
    assert stdev(errors) == pytest.approx(SPREAD, abs=1e-4)


def test_the_logistic_covers_what_it_says(errors: list[float]) -> None:
    """Of the peaks, about as many lie within one and two deviations as of the distribution: 72 and 95 %."""
    for deviations in (1, 2):
        inside = fmean(abs(e - BIAS) <= deviations * SPREAD for e in errors)
        assert inside == pytest.approx(tanh(deviations * pi / sqrt(3) / 2), abs=0.1)


def test_what_ran_out_of_memory_was_the_likelier_to(predictions: list[Prediction]) -> None:
    """Mean over the rows of which it is known, against the whole device."""
    chances = {True: [], False: []}  # type: dict[bool, list[float]]
    for p in predictions:
        if p.row.oom is not None:
            chances[p.row.oom].append(oom_probability(p.peak_gib, p.row.job.device.memory_gib))
    assert len(chances[True]) >= 3
    assert fmean(chances[True]) > 0.5
    assert fmean(chances[False]) < 0.1


def test_it_rises_with_the_peak_from_nothing_to_certain() -> None:
    chances = [oom_probability(peak, 80) for peak in (0, 1, 40, 60, 75, 80, 85, 100, 1e6)]
    assert chances == sorted(chances)
    assert chances[0] == 0
    assert chances[2] < 1e-3
    assert oom_probability(80 / 2.718281828**BIAS, 80) == pytest.approx(0.5)
    assert chances[-1] > 0.999
    with pytest.raises(ValueError, match="must be positive"):
        oom_probability(1, 0)
