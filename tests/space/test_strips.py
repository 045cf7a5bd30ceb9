"""Strips carry the elements of their moves, in the same order, and are as few as the storages allow."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.space.strategies import NodeOf, changes, storage
from trainsys.config import ParallelConfig
from trainsys.space.box import Box
from trainsys.space.build import build_layout
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.places import Place
from trainsys.space.strips import Strip, cut, strips
from trainsys.space.tensor import LogicalTensor, Space
from trainsys.space.transition import Move, transition

Change = tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]


def addresses(strip: Strip, sending: bool) -> list[int]:
    begin, step = (strip.src, strip.src_step) if sending else (strip.dst, strip.dst_step)
    return [begin + i * step + j for i in range(strip.rows) for j in range(strip.row)]


def addresses_of(move: Move, sending: bool) -> list[int]:
    at = move.src_at if sending else move.dst_at
    flat = np.arange(at.offset, at.offset + at.box.numel).reshape(at.box.shape)
    return [int(x) for x in np.atleast_1d(flat[(*move.box.within(at.box), ...)]).reshape(-1)]


@settings(max_examples=100)
@given(changes(), st.integers(1, 40))
def test_same_elements_in_the_same_order(change: Change, least: int) -> None:
    space, src, dst, alive, node_of = change
    full = [np.arange(t.numel).reshape(t.shape) for t in space.tensors]
    for rank in sorted({*alive, *dst.ranks}):
        try:
            share = transition(space, src, dst, rank, alive, node_of)
        except LostError:
            assume(False)
        have = len(storage(full, space, src, rank))
        for moves in (share.local, *(list(g) for _, g in groupby(share.sends, key=lambda m: m.dst))):
            joined = strips(moves)
            assert len(joined) <= max(len(moves), sum(prod_outer(m) for m in moves))
            for sending in (True, False):
                ours = [a for s in joined for a in addresses(s, sending)]
                assert ours == [a for m in moves for a in addresses_of(m, sending)]
            assert all(0 <= a < have for s in joined for a in addresses(s, True))
            parts = cut(moves, least)
            assert sorted((*parts.direct, *parts.packed)) == sorted(joined)
            assert all(s.numel >= least and (s.src_whole or s.dst_whole) for s in parts.direct)
            for sending in (True, False):
                whole = [s for s in parts.direct if is_run(addresses(s, sending))]
                assert parts.staged(sending, 3) == 3 * (sum(s.numel for s in joined) - sum(s.numel for s in whole))


def prod_outer(move: Move) -> int:
    return int(np.prod(move.box.shape[:-2], dtype=int))


def is_run(at: list[int]) -> bool:
    return at == list(range(at[0], at[0] + len(at)))


def test_chunks_of_one_shard_are_one_strip() -> None:
    """A row-split matrix in 7-element chunks leaves for one new owner in a single run."""
    space = Space((LogicalTensor("w", (8, 5), 0, 0),))
    src = replace(build_layout(ParallelConfig(tp=2), [1], range(2), 7, lambda r: 0), mirrors=())
    dst = replace(build_layout(ParallelConfig(tp=4), [1], range(2, 6), 7, lambda r: 0), mirrors=())
    moves = transition(space, src, dst, 3, src.ranks, lambda r: 0).receives
    assert len(moves) > 1
    assert strips(moves) == [Strip(1, 10, 10, 0, 0, 0)]


def test_columns_are_one_strip() -> None:
    """Half the columns of a matrix: as many rows, one strip, whole where they arrive."""
    space = Space((LogicalTensor("w", (6, 8), 0, 1),))
    src = build_layout(ParallelConfig(tp=1), [1], range(1), 5, lambda r: 0)
    dst = replace(build_layout(ParallelConfig(tp=2), [1], range(1, 3), 5, lambda r: 0), mirrors=())
    moves = transition(space, src, dst, 2, src.ranks, lambda r: 0).receives
    assert strips(moves) == [Strip(6, 4, 4, 8, 0, 4)]
    assert cut(moves, 24).staged(False, 1) == 0
    assert cut(moves, 24).staged(True, 1) == 24
    assert cut(moves, 25).direct == ()


def test_a_box_with_two_strided_dims_becomes_one_strip_per_outer_index() -> None:
    outer, inner = Box((0, 0, 0), (4, 4, 4)), Box((1, 1, 1), (3, 3, 3))
    found = strips([Move(0, inner, 0, 1, Place(0, outer), Place(0, inner))])
    assert found == [Strip(2, 2, 21, 4, 0, 2), Strip(2, 2, 37, 4, 4, 2)]
