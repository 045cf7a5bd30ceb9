"""Mirrors by replay, as full states, as changes: the same bits as their owners, whether or not steps are clipped."""

from __future__ import annotations

import time
from dataclasses import replace
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.comm.group import CommError
from trainsys.parallel.snapshots.copies import Pending
from trainsys.parallel.snapshots.delta import decode, encode
from trainsys.parallel.snapshots.keeper import Keeper
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


@pytest.mark.parametrize("error", [None, CommError("a peer went"), AssertionError("half a message")])
def test_who_waits_beside_is_told_whatever_happens(error: Exception | None) -> None:
    """And the messages' time counts in the trial of the ways."""

    def then() -> None:
        if error is not None:
            raise error

    told = SimpleQueue[Exception | None]()
    mesh = SimpleNamespace(finish=lambda works: time.sleep(0.05))
    pending = Pending(torch.empty(0), works=[cast(Any, None)], then=then, seconds=1.0)
    Keeper.when_kept(cast(Any, SimpleNamespace(mesh=mesh)), pending, told.put)
    assert told.get(timeout=5) is error
    assert pending.seconds >= 1.05
