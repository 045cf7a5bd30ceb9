"""Vocabulary-parallel loss and tensor-parallel layers against torch's unsharded ones."""

from __future__ import annotations

import pytest

from tests.parallel import layer_bodies as bodies
from trainsys.testing import RankPool


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize(
    ("dtype", "scale", "tolerance"), [("float64", 1.0, 1e-13), ("float64", 300.0, 1e-13), ("float32", 5.0, 1e-5)]
)
def test_vocab_parallel_cross_entropy(ranks: RankPool, tp: int, dtype: str, scale: float, tolerance: float) -> None:
    """Also with logits whose exponentials overflow unless the maximum over all shards is taken off first."""
    results = ranks.run(bodies.loss, tp, dtype, scale)
    for r in results:
        assert r["loss"] < tolerance
        assert r["alone"] < tolerance
        assert r["grad"] < tolerance
    assert len({r["bits"] for r in results}) == 1, "ranks of a team see different losses"


def test_bfloat16_logits_are_summed_in_float32(ranks: RankPool) -> None:
    for r in ranks.run(bodies.loss, 2, "bfloat16", 3.0):
        assert r["loss"] < 1e-5
        assert r["alone"] < 1e-5


@pytest.mark.parametrize("tp", [2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_column_and_row_linear(ranks: RankPool, tp: int, sequence_parallel: bool) -> None:
    for r in ranks.run(bodies.layers, tp, sequence_parallel):
        assert max(r.values()) < 1e-13, r


@pytest.mark.parametrize("tp", [2, 4])
def test_vocab_parallel_embedding(ranks: RankPool, tp: int) -> None:
    for r in ranks.run(bodies.embedding, tp):
        assert max(r.values()) < 1e-13, r


def test_sums_over_the_team(ranks: RankPool) -> None:
    for r in ranks.run(bodies.sums, 4):
        assert all(r.values()), r
