"""Every layout trains the same model: float64 runs against one process, to 1e-10 (the rounding of other orders)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.parallel.runs import assert_close, expectation, run_all, run_config
from trainsys.testing import RankPool

TOLERANCE = 1e-10


def factorisations(num_ranks: int) -> Iterator[tuple[int, int, int]]:
    for dp in range(1, num_ranks + 1):
        for tp in range(1, num_ranks // dp + 1):
            if num_ranks % (dp * tp) == 0:
                yield dp, tp, num_ranks // (dp * tp)


def meshes(num_ranks: int) -> list[dict[str, Any]]:
    """Every factorisation, under both ZeRO stages and, where there is a pipeline, both schedules.

    Of eight ranks those without replicas have ZeRO 0 alone: of four they have both.
    """
    return [
        {"dp": dp, "tp": tp, "pp": pp, "zero": zero, "schedule": schedule}
        for dp, tp, pp in factorisations(num_ranks)
        for zero in (0, 1)
        for schedule in (("1f1b", "gpipe") if pp > 1 else ("1f1b",))
        if num_ranks < 8 or dp > 1 or zero == 0
    ]


def compare(ranks: RankPool, num_ranks: int, model: dict[str, Any], grids: list[dict[str, Any]]) -> None:
    sequences = [max(4, grid.get("dp", 1)) for grid in grids]
    configs = [run_config("float64", model, n, **grid) for n, grid in zip(sequences, grids, strict=True)]
    for n, got in zip(sequences, run_all(ranks, num_ranks, configs), strict=True):
        expected = expectation(ranks, 1, run_config("float64", model, n))
        assert float.fromhex(expected.losses[-1][0]) != float.fromhex(expected.losses[0][0])
        assert_close(got, expected, TOLERANCE)


@pytest.mark.parametrize(("num_ranks", "pp"), [(n, pp) for n in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if pp <= n])
def test_every_factorisation(ranks: RankPool, num_ranks: int, pp: int) -> None:
    grids = [g for g in meshes(num_ranks) if g["pp"] == pp]
    assert grids
    compare(ranks, num_ranks, {"num_layers": max(2, pp)}, grids)


def test_factorisations_are_complete() -> None:
    assert [len(list(factorisations(n))) for n in (1, 2, 4, 8)] == [1, 3, 6, 10]


def test_uneven_layers(ranks: RankPool) -> None:
    grids = [
        {"pp": 4, "stage_layers": (1, 2, 1, 1)},
        {"pp": 2, "tp": 2, "stage_layers": (1, 4), "zero": 1},
        {"pp": 3, "schedule": "gpipe"},
        {"pp": 2, "dp": 2, "stage_layers": (4, 1), "zero": 1},
        {"pp": 2, "tp": 2, "vp": 2, "stage_layers": (1, 2, 1, 1), "schedule": "interleaved"},
    ]
    compare(ranks, 4, {"num_layers": 5}, grids)


@pytest.mark.parametrize(
    "model",
    [{"tied": True, "num_kv_heads": 4}, {"family": "gpt2", "tied": True, "dropout": 0.1}],
    ids=["llama tied gqa", "gpt2 tied dropout"],
)
def test_sequence_parallel_and_tied(ranks: RankPool, model: dict[str, Any]) -> None:
    grids = [
        {"tp": 4},
        {"tp": 4, "sequence_parallel": True, "zero": 1},
        {"tp": 2, "dp": 2, "sequence_parallel": True, "recompute": "full"},
        {"tp": 2, "pp": 2, "sequence_parallel": True, "zero": 1},
    ]
    compare(ranks, 4, model, grids)


@pytest.mark.parametrize(
    "model", [{"num_kv_heads": 4}, {"num_kv_heads": 2, "head_dim": 6, "tied": True}], ids=["qwen3", "qwen3 wide tied"]
)
def test_norms_of_heads(ranks: RankPool, model: dict[str, Any]) -> None:
    """Each tp rank sees the norm weights' gradient from its own heads only, with and without a split sequence."""
    grids = [
        {"tp": 2},
        {"tp": 2, "pp": 2},
        {"tp": 2, "pp": 2, "sequence_parallel": True, "zero": 1},
        {"tp": 2, "dp": 2, "zero": 1, "recompute": "full"},
        {"tp": 2, "dp": 2, "reduction": "fast"},
    ]
    compare(ranks, 4, {"family": "qwen3", **model}, grids)


@pytest.mark.parametrize(
    "model",
    [{"num_kv_heads": 1}, {"family": "qwen3", "num_kv_heads": 2, "head_dim": 6}],
    ids=["one", "two, qwen3"],
)
def test_tp_ranks_share_key_value_heads(ranks: RankPool, model: dict[str, Any]) -> None:
    """Twice and four times as many tp ranks as key/value heads."""
    grids = [
        {"tp": 4},
        {"tp": 8, "sequence_parallel": True, "recompute": "full"},
        {"tp": 4, "dp": 2, "zero": 1},
        {"tp": 4, "pp": 2, "zero": 1},
        {"tp": 4, "dp": 2, "reduction": "fast"},
    ]
    compare(ranks, 8, model, grids)


def test_mixture_of_experts(ranks: RankPool) -> None:
    """Router and gate see on each tp rank what its part of the experts answers; the load-balance loss counts once."""
    model = {
        "family": "qwen3_moe", "num_experts": 5, "experts_per_token": 3, "router_aux_coef": 0.3, "router_norm": True,
        "shared_ffn_dim": 32,
    }  # fmt: skip
    grids = [
        {"tp": 2, "dp": 2, "zero": 1},
        {"tp": 4, "sequence_parallel": True, "recompute": "full"},
        {"tp": 2, "pp": 2, "sequence_parallel": True},
        {"dp": 2, "pp": 2, "reduction": "fast"},
    ]
    compare(ranks, 4, model, grids)


def test_fast_reduction(ranks: RankPool) -> None:
    """One running sum and an all-reduce: other bits, the same numbers."""
    grids = [
        {"dp": 4, "reduction": "fast"},
        {"dp": 2, "tp": 2, "zero": 1, "reduction": "fast"},
        {"dp": 2, "tp": 2, "sequence_parallel": True, "reduction": "fast"},
        {"dp": 2, "pp": 2, "reduction": "fast"},
    ]
    compare(ranks, 4, {"tied": True}, grids)
