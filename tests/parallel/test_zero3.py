"""ZeRO-3: the bits of the rest, with no more than two blocks' weights on a rank."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import assert_close, assert_same_bits, run_all, run_config
from trainsys.testing import RankPool

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("float32", {"num_layers": 4}),
    "llama tied": ("float32", {"num_layers": 4, "tied": True, "num_kv_heads": 2}),
    "gpt2 tied dropout": ("float32", {"num_layers": 4, "family": "gpt2", "tied": True, "dropout": 0.1}),
    "llama bfloat16": ("bfloat16", {"num_layers": 4, "num_kv_heads": 2}),
}

FOUR_RANKS: list[dict[str, Any]] = [
    {"dp": 2},
    {"dp": 4},
    {"dp": 3, "recompute": "full"},
    {"dp": 2, "pp": 2},
    {"dp": 2, "pp": 2, "schedule": "gpipe"},
    {"pp": 2, "stage_replicas": (2, 1)},
    {"pp": 2, "stage_replicas": (1, 3), "stage_layers": (3, 1), "recompute": "full"},
    {"pp": 3, "stage_replicas": (1, 2, 1), "schedule": "gpipe"},
]


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_one_process(ranks: RankPool, name: str) -> None:
    dtype, model = MODELS[name]
    (expected,) = run_all(ranks, 1, [run_config(dtype, model)])
    for got in run_all(ranks, 4, [run_config(dtype, model, zero=3, **grid) for grid in FOUR_RANKS]):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_bits_of_its_tensor_parallel_family(ranks: RankPool, sequence_parallel: bool) -> None:
    model = {"num_layers": 2, "family": "gpt2", "tied": True, "dropout": 0.1}
    fixed = {"tp": 2, "sequence_parallel": sequence_parallel}
    (expected,) = run_all(ranks, 2, [run_config("float32", model, **fixed)], steps=3)
    grids: list[dict[str, Any]] = [{"dp": 2, "recompute": "full"}, {"pp": 2, "stage_replicas": (1, 2)}]
    for got in run_all(ranks, 6, [run_config("float32", model, zero=3, **grid, **fixed) for grid in grids], steps=3):
        assert_same_bits(got, expected)


def test_one_process_in_float64(ranks: RankPool) -> None:
    model = {"tied": True, "num_kv_heads": 4}
    (expected,) = run_all(ranks, 1, [run_config("float64", model)])
    grids: list[dict[str, Any]] = [
        {"dp": 4},
        {"dp": 2, "pp": 2, "schedule": "gpipe"},
        {"dp": 2, "tp": 2, "sequence_parallel": True},
        {"dp": 4, "reduction": "fast"},
    ]
    for got in run_all(ranks, 4, [run_config("float64", model, zero=3, **grid) for grid in grids]):
        assert_close(got, expected, 1e-10)
