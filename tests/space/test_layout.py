"""Who owns, holds and mirrors what: counted coordinate by coordinate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings

from tests.space.strategies import NodeOf, cases, elements, numbered, storage
from trainsys.config import ParallelConfig
from trainsys.space.build import build_layout, stage_spans
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import EMBED, LogicalTensor, Space

Case = tuple[Space, Layout, NodeOf]


def copies(case: Case, pieces_of: str) -> np.ndarray:
    """How many times each element of the space is in the named pieces of all ranks."""
    space, layout, _ = case
    full = numbered(space)
    count = np.zeros(space.numel, dtype=int)
    for rank in layout.ranks:
        for piece in getattr(layout, pieces_of)(space, rank):
            np.add.at(count, elements(full, space, layout.tp, piece), 1)
    return count


def expected(case: Case, replicas_of: str) -> np.ndarray:
    """Copies by definition: tp ranks that hold the same part, times one or times the teams that use it."""
    space, layout, _ = case
    parts = []
    for tensor in space.tensors:
        same = layout.tp if tensor.split is None else layout.tp // min(layout.tp, tensor.max_shards or layout.tp)
        teams = 0
        for s in layout.stages:
            if any(b in range(*span) for b in tensor.blocks for span in s.spans):
                every = tensor.expert is None or not s.expert_seats
                own = None if every else s.expert_seats[tensor.expert * len(s.expert_seats) // tensor.num_experts]
                teams += len(s.teams if own is None else set(own))
        parts.append(np.full(tensor.numel, same * (teams if replicas_of == "teams" else 1)))
    return np.concatenate(parts)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_copies_of_every_element(case: Case) -> None:
    _, layout, _ = case
    assert np.array_equal(copies(case, "owned"), expected(case, "owner"))
    assert np.array_equal(copies(case, "held"), expected(case, "teams" if layout.zero == 0 else "owner"))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_piece_has_as_many_holders_as_asked_for(case: Case) -> None:
    space, layout, node_of = case
    held: Counter[Piece] = Counter(p for r in layout.ranks for p in layout.held(space, r))
    stored: dict[Piece, list[int]] = {}
    for rank in layout.ranks:
        pieces = layout.storage(space, rank)
        assert len(set(pieces)) == len(pieces), "a piece is stored twice on one rank"
        for piece in pieces:
            stored.setdefault(piece, []).append(rank)
    for piece, at in stored.items():
        assert len(at) == max(layout.tolerates + 1, held[piece]), (piece, at)
    for rank, peers in layout.peers_of.items():
        assert len({rank, *peers}) == layout.tolerates + 1
        assert set(peers) <= set(layout.ranks)
        nodes = {node_of(r) for r in layout.ranks}
        assert len({node_of(r) for r in (rank, *peers)}) == min(len(nodes), layout.tolerates + 1)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_holders_are_the_ranks_that_store_a_piece(case: Case) -> None:
    space, layout, _ = case
    for ordinal, tensor in enumerate(space.tensors):
        for shard in range(layout.tp):
            covered = 0
            for piece, owner in layout.pieces(tensor, ordinal, shard):
                assert piece.start == covered
                covered = piece.stop
                holders = layout.holders(tensor, ordinal, shard, owner)
                assert holders[0] == owner[shard]
                assert sorted(holders) == [r for r in layout.ranks if piece in layout.storage(space, r)]
                assert piece in layout.owned(space, owner[shard])
            parts = 1 if tensor.split is None else min(layout.tp, tensor.max_shards or layout.tp)
            assert covered == tensor.numel // parts


@settings(max_examples=100, deadline=None)
@given(cases())
def test_pieces_do_not_depend_on_replicas_or_stages(case: Case) -> None:
    """ZeRO ownership, norms and hashes name pieces; dp and pp must not change the names."""
    space, layout, _ = case
    alone = build_layout(
        ParallelConfig(tp=layout.tp), [layout.stages[-1].spans[-1][1] - 1], range(layout.tp), layout.chunk, int
    )
    for ordinal, tensor in enumerate(space.tensors):
        for shard in range(layout.tp):
            ours = [p for p, _ in layout.pieces(tensor, ordinal, shard)]
            assert ours == [p for p, _ in alone.pieces(tensor, ordinal, shard)]


@settings(max_examples=100, deadline=None)
@given(cases())
def test_round_trip_through_json(case: Case) -> None:
    _, layout, _ = case
    again = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert hash(again) == hash(layout)
    assert str(again) == str(layout)


def test_storage_of_a_known_layout() -> None:
    """dp 2 under ZeRO-1: chunks alternate between the replicas; each keeps the other's as a mirror."""
    space = Space((LogicalTensor("w", (2, 3), 0),))
    layout = build_layout(ParallelConfig(dp=2, zero=1), [1], [0, 1], 2, lambda r: r)
    full = numbered(space)
    assert storage(full, space, layout, 0).tolist() == [0, 1, 4, 5, 2, 3]
    assert storage(full, space, layout, 1).tolist() == [2, 3, 0, 1, 4, 5]
    assert layout.peers_of == {0: (1,), 1: (0,)}


def test_text() -> None:
    node_of = {r: r // 2 for r in range(12)}.__getitem__
    even = build_layout(ParallelConfig(dp=2, tp=2, pp=2), [2, 2], range(8), 4, node_of)
    assert str(even) == "dp2·tp2·pp2 zero0"
    assert even.uniform
    ragged = build_layout(ParallelConfig(pp=3, stage_replicas=(2, 1, 2), zero=1), [1, 1, 2], range(5), 4, node_of)
    assert str(ragged) == "dp2+1+2·tp1·pp3 zero1"
    assert not ragged.uniform
    assert ragged.layers(4) == (1, 1, 2)
    assert ragged.where(3) == (0, 1, 0)


def test_blocks_of_stages() -> None:
    assert stage_spans([2, 3]) == [((EMBED, 2),), ((2, 6),)]
    assert stage_spans([4]) == [((EMBED, 5),)]
    assert stage_spans([1, 2, 1, 1], vp=2) == [((EMBED, 1), (3, 4)), ((1, 3), (4, 6))]


def test_too_few_ranks() -> None:
    with pytest.raises(ValueError, match=r"needs 4 ranks but only 3 are there; set parallel\.dp lower"):
        build_layout(ParallelConfig(dp=4), [1], range(3), 4, int)


def test_space_does_not_import_torch() -> None:
    code = (
        "import sys, trainsys.space.build, trainsys.space.rounds, trainsys.space.transition, trainsys.comm.topology\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
