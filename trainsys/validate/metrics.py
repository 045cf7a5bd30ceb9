"""How far predictions lie from measurements, in percent, and whether they rank and choose well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainsys.perf.memory import memory_cost
from trainsys.perf.step import step_cost
from trainsys.validate.rows import Row

SPARE = 0.96  # of a device's memory may be predicted to be full; beyond, fragments decide


@dataclass(frozen=True)
class Confusion:
    """Out of memory: predicted against happened."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0


@dataclass(frozen=True)
class Prediction:
    """A row and what the model says of it."""

    row: Row
    step_s: float
    peak_gib: float

    @property
    def oom(self) -> bool:
        return self.peak_gib > SPARE * self.row.job.device.memory_gib

    @property
    def step_error(self) -> float:
        """Percent; positive: predicted too slow."""
        assert self.row.step_s is not None
        return 100 * (self.step_s / self.row.step_s - 1)

    @property
    def memory_error(self) -> float:
        assert self.row.peak_gib is not None
        return 100 * (self.peak_gib / self.row.peak_gib - 1)


@dataclass(frozen=True)
class Score:
    """Errors in percent; None where nothing was measured or there are too few rows.

    Attributes:
        n: rows with a step time.
        mape, bias: mean of the errors' sizes, and of the errors.
        spearman: rank correlation of predicted and measured step times.
        regret: how much slower than the best of its model, devices and batch the row is that the model would choose;
            mean over the groups of two rows and more.
        memory_mape: of the rows with a peak.
        oom: of the rows where it is known whether they ran out of memory.
    """

    n: int
    mape: float | None
    bias: float | None
    spearman: float | None
    regret: float | None
    memory_mape: float | None
    oom: Confusion

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def predict(row: Row) -> Prediction:
    """The model's answer for one row."""
    return Prediction(row, step_cost(row.job).step_s, memory_cost(row.job).total_gib)


def score(predictions: Sequence[Prediction]) -> Score:
    """Of any rows together."""
    timed = [p for p in predictions if p.row.step_s is not None]
    errors = np.array([p.step_error for p in timed])
    memory = np.array([p.memory_error for p in predictions if p.row.peak_gib is not None])
    regrets = [_regret(group) for group in _choices(timed)]
    return Score(
        n=len(timed),
        mape=_mean(abs(errors)),
        bias=_mean(errors),
        spearman=_spearman([p.step_s for p in timed], [p.row.step_s or 0.0 for p in timed]),
        regret=_mean(np.array(regrets)),
        memory_mape=_mean(abs(memory)),
        oom=_confusion(predictions),
    )


def by_set(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The rows of each set, or part of a set, in the order of the files."""
    return _grouped(predictions, lambda p: p.row.group)


def by_case(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The rows of each model on each number of devices."""
    return _grouped(predictions, lambda p: f"{p.row.model} on {p.row.job.degrees.devices} {p.row.job.device.name}")


def by_kind(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """Dense models and those with experts apart, where there are both; else nothing."""
    kinds = _grouped(predictions, lambda p: "experts" if p.row.job.shape.experts else "dense")
    return kinds if len(kinds) > 1 else {}


def _choices(timed: Sequence[Prediction]) -> list[list[Prediction]]:
    """Groups of rows that do the same work on the same devices, so that one may choose among them."""

    def work(p: Prediction) -> str:
        job = p.row.job
        return repr((p.row.group, p.row.model, job.shape, job.device.name, job.degrees.devices, job.precision, job.seq))

    return [group for group in _grouped(timed, work).values() if len(group) > 1]


def _grouped(rows: Sequence[Prediction], key: Callable[[Prediction], str]) -> dict[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = {}
    for p in rows:
        groups.setdefault(key(p), []).append(p)
    return groups


def _regret(group: Sequence[Prediction]) -> float:
    """Percent, of seconds per sequence: batches may differ by what a layout can divide."""

    def measured(p: Prediction) -> float:
        return (p.row.step_s or 0.0) / p.row.job.global_batch

    chosen = min(group, key=lambda p: p.step_s / p.row.job.global_batch)
    return 100 * (measured(chosen) / min(map(measured, group)) - 1)


def _confusion(predictions: Sequence[Prediction]) -> Confusion:
    known = [(p.oom, p.row.oom) for p in predictions if p.row.oom is not None]
    return Confusion(
        tp=known.count((True, True)),
        fp=known.count((True, False)),
        fn=known.count((False, True)),
        tn=known.count((False, False)),
    )


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank; None below three rows, or where all are equal."""
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray[Any, Any]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[places]
