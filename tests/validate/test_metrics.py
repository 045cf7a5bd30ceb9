"""The scores themselves, on rows whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import leave_one_out
from tests.validate.test_published import PUBLISHED
from trainsys.validate.metrics import Confusion, Prediction, score
from trainsys.validate.rows import Row, read


@pytest.fixture(scope="module")
def row() -> Row:
    return read(PUBLISHED / "sc21_t1.csv")[0][0]


def said(row: Row, measured: float | None, predicted: float, batch: int = 512) -> Prediction:
    job = replace(row.job, global_batch=batch)
    return Prediction(replace(row, job=job, step_s=measured, peak_gib=None, oom=None), predicted, 1.0)


def test_errors_are_percent_of_the_measured(row: Row) -> None:
    found = score([said(row, 10, 11), said(row, 10, 8), said(row, None, 5)])
    assert (found.n, found.mape, found.bias) == (2, pytest.approx(15), pytest.approx(-5))
    assert found.memory_mape is None


def test_ties_share_their_rank(row: Row) -> None:
    found = score([said(row, m, p) for m, p in ((1, 1), (2, 2), (2, 3), (4, 4))])
    assert found.spearman == pytest.approx(0.9486833)


def test_regret_is_what_the_choice_loses(row: Row) -> None:
    """The model prefers the second, which takes 10 % longer; seconds per sequence count."""
    found = score([said(row, 10, 12), said(row, 11, 9), said(row, 40, 60, batch=1024)])
    assert found.regret == pytest.approx(10)


def test_memory_verdicts_are_counted(row: Row) -> None:
    limit = row.job.device.memory_gib
    rows = [(limit, True), (limit, False), (1.0, True), (1.0, False), (1.0, False), (1.0, None)]
    found = score([Prediction(replace(row, oom=oom), 1.0, gib) for gib, oom in rows])
    assert found.oom == Confusion(tp=1, fp=1, fn=1, tn=2)


def test_a_set_is_judged_by_a_rate_fitted_on_the_others() -> None:
    rows = {row["set"]: row for row in leave_one_out.measure()}
    assert len(rows) == 4
    assert all(abs(row["scale"] - 1) < 0.03 for row in rows.values()), "the shipped rate is no outlier of any fit"
    assert all(row["mape_left_out"] < 8.5 for row in rows.values())
