"""Linear attention trains under every other axis as in one process, and its bits do not depend on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.parallel.runs import assert_close, assert_same_bits, expectation, run_all, run_config
from trainsys.config import BatchConfig, RunConfig
from trainsys.testing import RankPool

Grid = dict[str, Any]


def config_of(dtype: str, decay: str, **parallel: Any) -> RunConfig:
    """4 sequences of 13 tokens in as many microbatches; of four layers 1 and 3 have softmax; heads share states."""
    model = {"family": "linear_llama", "decay": decay, "softmax_every": 2, "num_layers": 4, "num_kv_heads": 4}
    return replace(run_config(dtype, model, **parallel), batch=BatchConfig(4, 1, 13))


@pytest.mark.parametrize(
    ("decay", "grids"),
    [
        ("diagonal", [{"tp": 2, "pp": 2}, {"cp": 2, "dp": 2, "zero": 3, "recompute": "full"}, {"cp": 4}]),
        ("delta", [{"tp": 4, "zero": 1}, {"cp": 3}, {"cp": 2, "pp": 2, "schedule": "zb1p", "recompute": "stage"}]),
    ],
)
def test_one_process_has_the_same_numbers(ranks: RankPool, decay: str, grids: list[Grid]) -> None:
    expected = expectation(ranks, 1, config_of("float64", decay))
    assert expected.losses[0] != expected.losses[-1]
    for got in run_all(ranks, 4, [config_of("float64", decay, **grid) for grid in grids]):
        assert_close(got, expected, 1e-9)


def test_inside_sequence_parallel_regions_all_rows_are_there(ranks: RankPool) -> None:
    plain, grid = (
        replace(config_of("float64", "scalar", **grid), batch=BatchConfig(4, 1, 16))
        for grid in ({}, {"cp": 2, "tp": 2, "sequence_parallel": True})
    )
    (got,) = run_all(ranks, 4, [grid])
    assert_close(got, expectation(ranks, 1, plain), 1e-9)


@pytest.mark.parametrize("cp", [1, 2])
def test_layouts_change_no_bit(ranks: RankPool, cp: int) -> None:
    """But for cp itself."""
    expected = expectation(ranks, cp, config_of("float32", "scalar", cp=cp))
    grids: list[Grid] = [{"dp": 2, "zero": 2}, {"pp": 2, "stage_layers": (1, 3)}]
    for got in run_all(ranks, 4, [config_of("float32", "scalar", cp=cp, **grid) for grid in grids]):
        assert_same_bits(got, expected)
