"""The guarantee: at one tp degree, dp, ZeRO, pp, schedule, routes and recomputation do not change a single bit."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.testing import RankPool

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 tied dropout": ("float32", {"num_layers": 4, "family": "gpt2", "tied": True, "dropout": 0.1}),
    "mixtral": ("float32", {"num_layers": 4, "family": "mixtral", "num_experts": 4, "router_aux_coef": 0.1}),
    "llama bfloat16": ("bfloat16", {"num_layers": 4, "num_kv_heads": 2}),
}

FOUR_RANKS: list[dict[str, Any]] = [
    {"dp": 4},
    {"dp": 3, "zero": 1},
    {"dp": 2, "pp": 2, "zero": 1, "schedule": "gpipe"},
    {"pp": 4},
    {"dp": 4, "zero": 1, "recompute": "full"},
    {"pp": 2, "stage_replicas": (2, 1), "stage_layers": (1, 3), "zero": 1},
    {"pp": 2, "stage_replicas": (1, 3), "schedule": "gpipe"},
    {"pp": 3, "stage_replicas": (1, 2, 1), "recompute": "full"},
    {"dp": 4, "zero": 2},
    {"dp": 2, "pp": 2, "zero": 2},
    {"dp": 2, "pp": 2, "zero": 1, "devices": (3, 0, 2, 1)},
    {"dp": 3, "zero": 2, "devices": (2, 3, 0)},
    {"pp": 2, "stage_replicas": (3, 1), "schedule": "gpipe", "zero": 2},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "zero": 1},
    {"pp": 2, "vp": 2, "stage_replicas": (1, 3), "schedule": "interleaved", "zero": 2},
    {"dp": 2, "vp": 4, "schedule": "gpipe", "recompute": "full"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "zero": 3},
    {"dp": 2, "vp": 2, "pp": 2, "schedule": "gpipe", "zero": 3, "stage_layers": (1, 1, 1, 1)},
]


@pytest.mark.parametrize("name", MODELS)
def test_four_ranks_have_the_bits_of_one(ranks: RankPool, name: str) -> None:
    dtype, model = MODELS[name]
    expected = expectation(ranks, 1, run_config(dtype, model))
    for got in run_all(ranks, 4, [run_config(dtype, model, **grid) for grid in FOUR_RANKS]):
        assert_same_bits(got, expected)
        assert (got.mirrored > 0) == (got.config.parallel.zero > 0 or got.config.parallel.pp > 1)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallel_family(ranks: RankPool, tp: int, sequence_parallel: bool) -> None:
    """All layouts of one tp degree against its smallest."""
    model, fixed = (
        {"num_layers": 2, "family": "gpt2", "tied": True, "dropout": 0.1},
        {"tp": tp, "sequence_parallel": sequence_parallel},
    )
    expected = expectation(ranks, tp, run_config("float32", model, 4, **fixed))
    grids: list[dict[str, Any]] = [
        {"dp": 2, "zero": 1},
        {"dp": 2, "zero": 2},
        {"dp": 2},
        {"pp": 2, "schedule": "gpipe"},
    ]
    if tp == 2 and not sequence_parallel:
        grids += [{"dp": 2, "pp": 2, "zero": 1}, {"pp": 2, "stage_replicas": (1, 3)}, {"dp": 4}]
        grids += [{"dp": 2, "zero": 1, "devices": (5, 0, 6, 3)}]
    for got in run_all(ranks, 8, [run_config("float32", model, 4, **grid, **fixed) for grid in grids]):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_shared_key_value_heads(ranks: RankPool, kv_heads: int) -> None:
    """Gradients that tp neighbours sum after the reduction have one order, whoever owns the piece."""
    model = {"family": "qwen3", "num_kv_heads": kv_heads, "head_dim": 6}
    expected = expectation(ranks, 4, run_config("float32", model, 4, tp=4))
    grids: list[dict[str, Any]] = [{"dp": 2, "zero": 1}, {"dp": 2}, {"pp": 2, "zero": 1}]
    for got in run_all(ranks, 8, [run_config("float32", model, 4, tp=4, **grid) for grid in grids]):
        assert_same_bits(got, expected)


def test_fast_reduction_does_not_claim_the_bits(ranks: RankPool) -> None:
    """The comparison can fail: another order of additions has other bits."""
    expected = expectation(ranks, 1, run_config("float32"))
    (got,) = run_all(ranks, 4, [run_config("float32", dp=4, reduction="fast")])
    with pytest.raises(AssertionError):
        assert_same_bits(got, expected)
