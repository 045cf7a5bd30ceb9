"""The vocabulary on all ranks: the same model as with the head on the last, to the same bits wherever its parts are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.parallel.runs import Outcome, assert_close, assert_same_bits, expectation, run_all, run_config
from tests.parallel.test_lengths import with_lengths
from trainsys.models.vocab_parts import whole_of
from trainsys.testing import RankPool

TOLERANCE = 1e-10
FORMS = ("one_barrier", "two_barriers")
V = {"schedule": "vhalf", "vp": 2}


class Joined:
    """An outcome whose parts of the vocabulary are one matrix again."""

    def __init__(self, outcome: Outcome) -> None:
        self.config, self.losses, self._parts = outcome.config, outcome.losses, outcome.parameters()

    def parameters(self) -> dict[str, np.ndarray]:
        joined: dict[str, list[np.ndarray]] = {}
        for name, value in self._parts.items():
            joined.setdefault(whole_of(self.config.model, name)[0], []).append(value)
        return {name: np.concatenate(values) if len(values) > 1 else values[0] for name, values in joined.items()}


def compare(ranks: RankPool, model: dict[str, Any], grids: list[dict[str, Any]], parts: int = 4) -> None:
    """Layouts of float64 runs in parts against one process with both matrices whole."""
    expected = expectation(ranks, 1, run_config("float64", model))
    configs = [run_config("float64", {**model, "vocab_parts": parts}, **grid) for grid in grids]
    for got in run_all(ranks, 4, configs):
        assert_close(Joined(got), expected, TOLERANCE)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("gpt2", False)])
def test_both_forms_train_the_same_model(ranks: RankPool, family: str, tied: bool) -> None:
    one, other = FORMS if tied else FORMS[::-1]
    grids: list[dict[str, Any]] = [
        {"pp": 4, "vocabulary": one},
        {"pp": 2, "tp": 2, "zero": 1, "vocabulary": other, **V},
        {"pp": 2, "dp": 2, "recompute": "full", "vocabulary": other, **V},
        {"pp": 2, "tp": 2, "sequence_parallel": family == "gpt2", "vocabulary": one},
    ]
    compare(ranks, {"num_layers": 4, "family": family, "tied": tied}, grids)


def test_uneven_parts_and_other_axes(ranks: RankPool) -> None:
    grids = [
        {"pp": 3, "stage_replicas": (1, 2, 1), "zero": 1, "vocabulary": "two_barriers", "recompute": "stage"},
        {"pp": 2, "cp": 2, "vocabulary": "one_barrier", "offload": "scheduled"},
        {"pp": 2, "dp": 2, "reduction": "fast", "schedule": "zb1p", "vocabulary": "one_barrier"},
        {"pp": 1, "dp": 2, "vocabulary": "two_barriers"},
        {"pp": 2, "vp": 2, "schedule": "interleaved", "stage_replicas": (1, 3), "vocabulary": "one_barrier"},
    ]
    compare(ranks, {"num_layers": 4, "vocab_size": 61}, grids, parts=5)


@pytest.mark.parametrize(("form", "dtype"), [(FORMS[0], "float32"), (FORMS[1], "bfloat16")])
def test_bits_do_not_depend_on_where_the_parts_are(ranks: RankPool, form: str, dtype: str) -> None:
    model = {"num_layers": 4, "vocab_parts": 5, "tied": dtype == "float32"}
    expected = expectation(ranks, 1, run_config(dtype, model, vocabulary=form))
    grids: list[dict[str, Any]] = [
        {"dp": 2, "pp": 2},
        {"pp": 4, "schedule": "gpipe"},
        {"pp": 2, "dp": 2, "zero": 1, **V},
        {"pp": 3, "stage_replicas": (1, 1, 2), "recompute": "full"},
    ]
    for got in run_all(ranks, 4, [run_config(dtype, model, **grid, vocabulary=form) for grid in grids]):
        assert_same_bits(got, expected)


def test_microbatches_of_several_lengths(ranks: RankPool) -> None:
    expected = expectation(ranks, 1, with_lengths(run_config("float64", {"num_layers": 4})))
    config = run_config("float64", {"num_layers": 4, "vocab_parts": 2}, pp=2, dp=2, vocabulary="two_barriers")
    (got,) = run_all(ranks, 4, [with_lengths(config)])
    assert_close(Joined(got), expected, TOLERANCE)  # type: ignore[arg-type]


def test_experts_in_lockstep(ranks: RankPool) -> None:
    model = {"family": "mixtral", "num_experts": 4, "num_layers": 2}
    compare(ranks, model, [{"dp": 2, "pp": 2, "ep": 2, "vocabulary": "one_barrier"}], parts=2)
