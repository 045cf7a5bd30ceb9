"""Transitions executed in numpy: exact contents, least traffic, and a loss only where there is one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings

from tests.space.execution import arrives_whole, plan, run
from tests.space.strategies import NodeOf, changes, numbered, storage
from trainsys.config import ParallelConfig
from trainsys.space.build import build_layout
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.tensor import LogicalTensor, Space
from trainsys.space.transition import transition

Change = tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]


@settings(max_examples=120, deadline=None)
@given(changes())
def test_any_change_fills_every_cell_once_at_the_least_traffic(change: Change) -> None:
    space, src, dst, alive, node_of = change
    shares = arrives_whole(space, src, dst, alive, node_of)
    if shares is None:
        return
    sent = Counter(m for s in shares.values() for m in s.sends)
    assert sent == Counter(m for s in shares.values() for m in s.receives)
    assert all(m.src == rank for rank, s in shares.items() for m in s.sends)
    assert all(m.src == m.dst == rank for rank, s in shares.items() for m in s.local)


@settings(max_examples=100, deadline=None)
@given(changes())
def test_near_sources_first(change: Change) -> None:
    """A box crosses nodes only when no living rank of the receiver's node holds it."""
    space, src, dst, alive, node_of = change
    shares = plan(space, src, dst, alive, node_of)
    full = numbered(space)
    have = {r: set(storage(full, space, src, r).tolist()) for r in alive}
    for share in (shares or {}).values():
        for m in share.receives:
            if node_of(m.src) != node_of(m.dst):
                wanted = set(run(storage(full, space, dst, m.dst), m.dst_at, m.box).reshape(-1).tolist())
                assert not any(wanted <= have[r] for r in alive if node_of(r) == node_of(m.dst))


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("holders", [2, 3, 4])
def test_sources_share_the_load(zero: int, holders: int) -> None:
    """New ranks fetch equal parts from all who hold them, for every number of replicas and every receiver."""
    space = Space((LogicalTensor("w", (48, 10), 0), LogicalTensor("v", (240,), 0)))
    src = build_layout(ParallelConfig(dp=holders, zero=0), [1], range(holders), 10, lambda r: 0)
    for count in (1, 2, 3):
        ranks = range(holders, holders + count)
        dst = build_layout(ParallelConfig(dp=count, zero=zero), [1], ranks, 10, lambda r: 0)
        for rank in ranks:
            share = transition(space, src, dst, rank, range(holders), lambda r: 0)
            load = Counter(dict.fromkeys(range(holders), 0))
            for m in share.receives:
                load[m.src] += m.box.numel
            assert max(load.values()) - min(load.values()) <= 10, (zero, holders, count, rank, load)


def test_one_chunk_each_begins_with_different_sources() -> None:
    space = Space((LogicalTensor("w", (10,), 0),))
    src = build_layout(ParallelConfig(dp=2), [1], range(2), 10, lambda r: 0)
    dst = build_layout(ParallelConfig(dp=2), [1], range(2, 4), 10, lambda r: 0)
    chosen = {m.src for rank in dst.ranks for m in transition(space, src, dst, rank, (0, 1), lambda r: 0).receives}
    assert chosen == {0, 1}


def test_lost_names_tensor_and_box() -> None:
    """ZeRO-1 over two ranks survives one death by the mirror, and nothing survives two."""
    space = Space((LogicalTensor("w", (4, 4), 0),))
    src = build_layout(ParallelConfig(dp=3, zero=1), [1], range(3), 4, lambda r: 0)
    dst = build_layout(ParallelConfig(dp=1, zero=1), [1], [5], 4, lambda r: 0)
    assert sum(m.box.numel for m in transition(space, src, dst, 5, (0, 1), lambda r: 0).receives) == 16
    with pytest.raises(LostError, match=r"w\[1:2, 0:4\]: no living rank holds it"):
        transition(space, src, dst, 5, (0,), lambda r: 0)


def test_same_layout_moves_nothing() -> None:
    space = Space((LogicalTensor("w", (8, 4), 0, 0), LogicalTensor("b", (7,), 1)))
    layout = build_layout(ParallelConfig(dp=2, tp=2, zero=1), [1], range(4), 3, lambda r: 0)
    for rank in range(4):
        share = transition(space, layout, layout, rank, layout.ranks, lambda r: 0)
        assert not share.sends
        assert not share.receives
        assert sum(m.box.numel for m in share.local) == len(storage(numbered(space), space, layout, rank))
