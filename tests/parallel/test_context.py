"""Context parallelism trains the same model: one process to 1e-10, and the same bits whatever else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.parallel.runs import assert_close, assert_same_bits, expectation, run_all, run_config
from trainsys.config import BatchConfig, RunConfig
from trainsys.sequence.layouts import zigzag
from trainsys.testing import RankPool

Grid = dict[str, Any]
GPT2: Grid = {"family": "gpt2", "tied": True, "dropout": 0.1, "num_layers": 4}
GQA: Grid = {"num_kv_heads": 2}
MIXTURE: Grid = {
    "family": "qwen3_moe", "num_experts": 5, "experts_per_token": 2, "router_aux_coef": 0.3, "shared_ffn_dim": 32,
}  # fmt: skip
INTERLEAVED: Grid = {"pp": 2, "vp": 2, "schedule": "interleaved"}
SPLIT: Grid = {"tp": 2, "sequence_parallel": True}


def config_of(dtype: str, model: Grid, seq_len: int = 16, **parallel: Any) -> RunConfig:
    """4 sequences of `seq_len` tokens in as many microbatches."""
    return replace(run_config(dtype, model, **parallel), batch=BatchConfig(4, 1, seq_len))


@pytest.mark.parametrize("seq_len", [8, 13, 16, 31])
@pytest.mark.parametrize("cp", [2, 3, 4])
def test_every_position_is_somewhere_and_the_work_is_even(cp: int, seq_len: int) -> None:
    own = [[i for part in zigzag(seq_len, cp)[index] for i in part] for index in range(cp)]
    assert sorted(i for positions in own for i in positions) == list(range(seq_len))
    assert all(positions == sorted(positions) for positions in own)
    keys = [sum(i + 1 for i in positions) for positions in own]  # looked at by each team's queries
    assert max(keys) - min(keys) <= seq_len
    if seq_len % cp == 0:
        assert {len(positions) for positions in own} == {seq_len // cp}


@pytest.mark.parametrize(
    ("model", "seq_len", "grids"),
    [
        (
            GPT2,
            16,
            [
                {"cp": 4}, {"cp": 2, "dp": 2}, {"cp": 2, **SPLIT, "zero": 1}, {"cp": 2, **INTERLEAVED, "zero": 2},
                {"cp": 2, "dp": 2, "zero": 3, "recompute": "full"}, {"cp": 2, "dp": 2, "reduction": "fast"},
            ],
        ),
        (
            GQA,
            13,
            [
                {"cp": 4, "zero": 1}, {"cp": 3, "recompute": "full"}, {"cp": 2, "tp": 2}, {"cp": 2, "pp": 2},
                {"cp": 2, "dp": 2, "zero": 2, "order": "cp,dp,pp,tp"},
            ],
        ),
        ({"window": 5}, 19, [{"cp": 4}, {"cp": 2, "tp": 2, "cp_method": "tasp", "cp_layout": "striped"}]),
        (MIXTURE, 16, [{"cp": 2, "dp": 2, "ep": 2, "zero": 2}, {"cp": 2, **SPLIT}]),
    ],
    ids=["gpt2 tied dropout", "gqa, uneven", "window", "mixture of experts"],
)  # fmt: skip
def test_one_process_has_the_same_numbers(ranks: RankPool, model: Grid, seq_len: int, grids: list[Grid]) -> None:
    expected = expectation(ranks, 1, config_of("float64", model, seq_len))
    assert expected.losses[0] != expected.losses[-1]
    for got in run_all(ranks, 4, [config_of("float64", model, seq_len, **grid) for grid in grids]):
        assert_close(got, expected, 1e-10)


def test_at_one_degree_nothing_else_changes_a_bit(ranks: RankPool) -> None:
    model = GPT2 | {"tied": True}
    expected = expectation(ranks, 2, config_of("float32", model, cp=2))
    grids: list[Grid] = [
        {"dp": 4}, {"dp": 3, "zero": 2}, {"dp": 2, "pp": 2, "zero": 3},
        {"pp": 2, "stage_replicas": (1, 3), "stage_layers": (1, 3), "zero": 1, "order": "pp,dp,cp,tp"},
        {**INTERLEAVED, "zero": 2, "recompute": "full"},
    ]  # fmt: skip
    for got in run_all(ranks, 8, [config_of("float32", model, cp=2, **grid) for grid in grids]):
        assert_same_bits(got, expected)


def test_who_has_the_experts_changes_no_bit(ranks: RankPool) -> None:
    """Experts shared out within a replica, across replicas, and by groups of which one reaches into two."""
    families: dict[int, list[Grid]] = {
        2: [{"ep": 2, "zero": 1}, {"dp": 2, "ep": 4, "recompute": "full"}],
        3: [{"dp": 2, "ep": 2, "zero": 3}],
    }
    for cp, grids in families.items():
        expected = expectation(ranks, cp, config_of("float32", MIXTURE, cp=cp))
        for got in run_all(ranks, 8, [config_of("float32", MIXTURE, cp=cp, **grid) for grid in grids]):
            assert_same_bits(got, expected)


def test_bfloat16_learns(ranks: RankPool) -> None:
    plain, got = run_all(ranks, 4, [config_of("bfloat16", GQA), config_of("bfloat16", GQA, cp=2, dp=2, zero=2)])
    for (ours, _), (theirs, _) in zip(got.losses, plain.losses, strict=True):
        assert float.fromhex(ours) == pytest.approx(float.fromhex(theirs), abs=0.02)
