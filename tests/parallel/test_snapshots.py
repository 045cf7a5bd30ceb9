"""Mirrors by replay, as full states, as changes: the same bits as their owners, whether or not steps are clipped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.parallel.snapshots.delta import decode, encode
from trainsys.testing import RankPool

GRIDS: list[dict[str, Any]] = [{"dp": 4, "zero": 2}, {"dp": 2, "pp": 2}, {"pp": 2, "stage_replicas": (3, 1), "zero": 1}]


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_the_ways_have_the_same_bits(ranks: RankPool, clip: float) -> None:
    """With clip=1 the first steps are clipped, and replayed whatever was asked for."""
    plain = run_config("float32")
    plain = replace(plain, optim=replace(plain.optim, clip=clip))
    expected = expectation(ranks, 1, plain, steps=11)
    configs = [
        replace(
            run_config("float32", **GRIDS[i % len(GRIDS)]),
            optim=plain.optim,
            elastic=replace(plain.elastic, snapshot=way, tolerate=tolerate),
        )
        for i, (way, tolerate) in enumerate([("full", 1), ("delta", 2), ("auto", 3), ("replay", 2), ("auto", 2)])
    ]
    for got in run_all(ranks, 4, configs, steps=11):
        assert_same_bits(got, expected)
        assert got.mirrored > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_what_changes_is_sent(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    before = [torch.randn(n, dtype=dtype) for n in (1001, 1, 40)]
    before[0][7] = float("nan")
    after = [t.clone() for t in before]
    after[0][3::10] += 1
    after[2][0] = -0.0
    data = encode(list(zip(before, after, strict=True)))
    changed = sum(int((a.view(torch.uint8) != b.view(torch.uint8)).view(len(a), -1).any(1).sum())
                  for a, b in zip(before, after, strict=True))  # fmt: skip
    assert len(data) == 126 + 1 + 5 + changed * dtype.itemsize
    got = [torch.full_like(t, 9.0) for t in before]
    decode(data, list(zip(before, got, strict=True)))
    for a, b in zip(got, after, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))
