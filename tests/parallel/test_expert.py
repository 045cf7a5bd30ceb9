"""Expert parallelism trains the same model: one process to 1e-10, and bit for bit what every team would do alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import assert_close, assert_same_bits, expectation, run_all, run_config
from trainsys.testing import RankPool

MODEL = {
    "family": "qwen3_moe", "num_experts": 5, "experts_per_token": 2, "router_aux_coef": 0.1, "router_norm": True,
    "shared_ffn_dim": 32,
}  # fmt: skip
GRIDS: list[dict[str, Any]] = [
    {"dp": 4, "ep": 2},
    {"dp": 4, "ep": 4, "zero": 1},
    {"dp": 4, "ep": 2, "zero": 2},
    {"dp": 2, "pp": 2, "ep": 2, "zero": 1},
    {"dp": 2, "pp": 2, "ep": 2, "zero": 2, "schedule": "gpipe"},
    {"dp": 4, "ep": 4, "recompute": "full"},
    {"dp": 4, "ep": 2, "zero": 3},
    {"dp": 4, "ep": 4, "zero": 3},
    {"dp": 2, "pp": 2, "ep": 2, "zero": 3, "recompute": "full"},
]


@pytest.mark.parametrize("tp", [1, 2])
def test_bits_do_not_depend_on_ep(ranks: RankPool, tp: int) -> None:
    expected = expectation(ranks, tp, run_config("float32", MODEL, tp=tp))
    assert expected.losses[0] != expected.losses[-1]
    grids = GRIDS if tp == 1 else [{"dp": 2, "ep": 2}, {"dp": 2, "ep": 2, "zero": 2, "recompute": "full"}]
    for got in run_all(ranks, 4, [run_config("float32", MODEL, tp=tp, **grid) for grid in grids]):
        assert_same_bits(got, expected)


def test_bits_with_several_runs_of_layers(ranks: RankPool) -> None:
    model = MODEL | {"num_layers": 4}
    expected = expectation(ranks, 1, run_config("float32", model))
    grids = [{"dp": 2, "pp": 2, "ep": 2, "vp": 2, "schedule": "interleaved", "zero": zero} for zero in (0, 2, 3)]
    for got in run_all(ranks, 4, [run_config("float32", model, **grid) for grid in grids]):
        assert_same_bits(got, expected)


def test_stages_with_other_numbers_of_replicas(ranks: RankPool) -> None:
    """Twice as many replicas in one stage; the lanes of each group still do the same at the same time."""
    expected = expectation(ranks, 1, run_config("bfloat16", MODEL))
    grids: list[dict[str, Any]] = [
        {"pp": 2, "stage_replicas": replicas, "ep": 2, "schedule": schedule, "zero": zero}
        for replicas, schedule, zero in (((4, 2), "1f1b", 2), ((2, 4), "gpipe", 0))
    ]
    for got in run_all(ranks, 6, [run_config("bfloat16", MODEL, **grid) for grid in grids]):
        assert_same_bits(got, expected)


def test_one_process_has_the_same_numbers(ranks: RankPool) -> None:
    expected = expectation(ranks, 1, run_config("float64", MODEL))
    grids: list[dict[str, Any]] = [
        {"dp": 4, "ep": 2},
        {"dp": 4, "ep": 4, "zero": 2},
        {"dp": 4, "ep": 2, "reduction": "fast"},
        {"dp": 2, "tp": 2, "ep": 2, "sequence_parallel": True, "zero": 1},
        {"dp": 2, "tp": 2, "ep": 2},
        {"dp": 2, "pp": 2, "ep": 2},
    ]
    for got in run_all(ranks, 4, [run_config("float64", MODEL, **grid) for grid in grids]):
        assert_close(got, expected, 1e-10)
