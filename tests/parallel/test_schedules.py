"""Every schedule, with what may change when work is done and where things lie: the bits of one process, in float64."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.schedule import GENERATORS
from trainsys.space.runs import FOLDED
from trainsys.testing import RankPool

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"pp": 4},
    "recompute": {"pp": 2, "dp": 2, "recompute": "full"},
    "zero 1": {"pp": 2, "dp": 2, "zero": 1},
    "zero 3": {"pp": 2, "dp": 2, "zero": 3},
    "ragged": {"pp": 2, "stage_replicas": (1, 3), "zero": 1},
}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_schedule_has_the_bits_of_one_process(ranks: RankPool, name: str) -> None:
    vp = 2 if name in FOLDED or name == "interleaved" else 1
    models: list[dict[str, Any]] = [{"num_layers": 2 * grid["pp"], "tied": True} for grid in VARIANTS.values()]
    grids = [{"schedule": name, "vp": vp, **grid} for grid in VARIANTS.values()]
    configs = [run_config("float64", model, **grid) for model, grid in zip(models, grids, strict=True)]
    for model, got in zip(models, run_all(ranks, 4, configs), strict=True):
        assert_same_bits(got, expectation(ranks, 1, run_config("float64", model)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_split_schedules_in_lower_precision(ranks: RankPool, dtype: str) -> None:
    """With experts shared out, tensor parallelism and sequence parallelism."""
    model = {"num_layers": 4, "family": "mixtral", "num_experts": 4, "router_aux_coef": 0.1}
    expected = expectation(ranks, 1, run_config(dtype, model))
    grids: list[dict[str, Any]] = [
        {"pp": 2, "dp": 2, "ep": 2, "schedule": "zb1p"},
        {"pp": 2, "dp": 2, "vp": 2, "ep": 2, "schedule": "zbv", "zero": 1},
    ]
    for got in run_all(ranks, 4, [run_config(dtype, model, **grid) for grid in grids]):
        assert_same_bits(got, expected)
    fixed = {"tp": 2, "sequence_parallel": True}
    expected = expectation(ranks, 2, run_config(dtype, model, **fixed))
    (got,) = run_all(ranks, 4, [run_config(dtype, model, pp=2, vp=2, schedule="zbv", **fixed)])
    assert_same_bits(got, expected)
