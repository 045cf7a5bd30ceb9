"""Context parallelism trains the same model: one process to 1e-10, and the same bits whatever else changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import assert_close, assert_same_bits, run_all, run_config
from trainsys.testing import RankPool

INTERLEAVED = {"vp": 2, "schedule": "interleaved"}
GRIDS: list[dict[str, Any]] = [
    {"cp": 4},
    {"cp": 2, "dp": 2},
    {"cp": 2, "dp": 2, "zero": 1},
    {"cp": 2, "dp": 2, "zero": 2},
    {"cp": 2, "dp": 2, "zero": 3, "recompute": "full"},
    {"cp": 2, "tp": 2},
    {"cp": 2, "tp": 2, "sequence_parallel": True, "zero": 1},
    {"cp": 2, "pp": 2},
    {"cp": 2, "pp": 2, "zero": 2, **INTERLEAVED},
    {"cp": 2, "dp": 2, "reduction": "fast"},
]


def compare(ranks: RankPool, num_ranks: int, model: dict[str, Any], grids: list[dict[str, Any]], **batch: int) -> None:
    """In float64 against one process."""
    (expected,) = run_all(ranks, 1, [run_config("float64", model)])
    assert expected.losses[0] != expected.losses[-1]
    for got in run_all(ranks, num_ranks, [run_config("float64", model, **grid) for grid in grids]):
        assert_close(got, expected, 1e-10)


@pytest.mark.parametrize(
    "model",
    [{"num_kv_heads": 4, "num_layers": 4}, {"family": "gpt2", "tied": True, "dropout": 0.1, "num_layers": 4}],
    ids=["gqa", "gpt2 tied dropout"],
)
def test_one_process_has_the_same_numbers(ranks: RankPool, model: dict[str, Any]) -> None:
    compare(ranks, 4, model, GRIDS)
