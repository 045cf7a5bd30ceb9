"""Offsets, holders and losses by arithmetic are those found by walking every piece."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.space.execution import execute, plan
from tests.space.strategies import RANKS, NodeOf, cases, meshes, nodes, numbered, spaces, storage, survivors
from trainsys.config import ParallelConfig
from trainsys.space.build import build_layout, succeed
from trainsys.space.coverage import LostError, check_covered
from trainsys.space.index import Index
from trainsys.space.layout import Layout, Piece
from trainsys.space.mirrors import mirrors
from trainsys.space.places import piece_places, storage_places
from trainsys.space.tensor import EMBED, LogicalTensor, Space
from trainsys.space.transition import transition


@st.composite
def edited(draw: st.DrawFn) -> tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]:
    """A layout and its successor after deaths, twice over, so that the seat tables are long and irregular."""
    num_layers, node_of = draw(st.integers(1, 3)), draw(nodes())
    parallel, layers = draw(meshes(num_layers, RANKS))
    tolerate = draw(st.sampled_from([1, 2, 3]))
    new = build_layout(parallel, layers, range(RANKS), draw(st.integers(1, 7)), node_of, tolerate=tolerate)
    alive = tuple(range(RANKS))
    for _ in range(2):
        old, before = new, alive
        degrees, alive = draw(survivors(old, alive))
        new = succeed(old, degrees, layers, alive, node_of, tolerate=tolerate)
    return draw(spaces(num_layers)), old, new, tuple(r for r in old.ranks if r in alive and r in before), node_of


def check_index(space: Space, layout: Layout, node_of: NodeOf) -> None:
    index = Index(space, layout, node_of)
    walked = {rank: dict(storage_places(space, layout, rank)) for rank in layout.ranks}

    def pieces(deal_tensor: int, shard: int, start: int, stop: int, offset: int) -> list[tuple[Piece, int]]:
        starts = range(start, stop, layout.chunk)
        return [(Piece(deal_tensor, shard, a, min(a + layout.chunk, stop)), offset + a - start) for a in starts]

    for rank in layout.ranks:
        computed = []
        for ward, deal, cell, offset in index.stored(rank):
            start = cell * deal.grain
            stop = min(start + deal.grain, deal.numel)
            computed += pieces(deal.tensor, layout.where(ward)[2], start, stop, offset)
            assert index.offset(rank, ward, deal.tensor, cell) == offset
        assert computed == list(walked[rank].items())
    for deal in index.deals:
        tensor = space.tensors[deal.tensor]
        for shard in range(layout.tp):
            for piece, owner in layout.pieces(tensor, deal.tensor, shard):
                holders = index.holders(deal, shard, piece.start // deal.grain)
                mine = [rank for rank, ward in holders.copies if layout.where(ward)[2] == shard]
                assert sorted(mine) == sorted(layout.holders(tensor, deal.tensor, shard, owner))
                cell = piece.start // deal.grain
                for rank, ward in holders.copies:
                    stored = Piece(piece.tensor, layout.where(ward)[2], piece.start, piece.stop)
                    at = index.offset(rank, ward, deal.tensor, cell) + piece.start - cell * deal.grain
                    assert at == walked[rank][stored]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_offsets_of_any_layout(case: tuple[Space, Layout, NodeOf]) -> None:
    check_index(*case)


@settings(max_examples=80, deadline=None)
@given(edited())
def test_offsets_and_moves_after_edits_of_the_seats(
    case: tuple[Space, Layout, Layout, tuple[int, ...], NodeOf],
) -> None:
    space, old, new, alive, node_of = case
    check_index(space, old, node_of)
    check_index(space, new, node_of)
    shares = plan(space, old, new, alive, node_of)
    if shares is None:
        return
    moves = [m for share in shares.values() for m in (*share.local, *share.receives)]
    filled, written = execute(space, old, new, alive, moves)
    for rank in new.ranks:
        assert filled[rank].tolist() == storage(numbered(space), space, new, rank).tolist()
        assert (written[rank] == 1).all()
    sent = {m for share in shares.values() for m in share.sends}
    assert sent == {m for share in shares.values() for m in share.receives}


@settings(max_examples=200, deadline=None)
@given(cases(), st.sets(st.integers(0, RANKS - 1), min_size=1, max_size=6))
def test_a_loss_is_the_first_piece_without_a_living_holder(case: tuple[Space, Layout, NodeOf], dead: set[int]) -> None:
    space, layout, _ = case
    alive = [r for r in layout.ranks if r not in dead]
    living = {p for rank in alive for p in layout.storage(space, rank)}
    expected = None
    for ordinal, tensor in enumerate(space.tensors):
        copies = tensor.copies(layout.tp)
        for shard in range(0, layout.tp, copies):
            for piece, _ in layout.pieces(tensor, ordinal, shard):
                equal = range(shard, shard + copies)
                if not any(Piece(ordinal, t, piece.start, piece.stop) in living for t in equal):
                    box = piece_places(tensor, layout.tp, piece, 0)[0].box
                    expected = expected or (tensor.name, box.start)
    try:
        check_covered(space, layout, alive)
        found = ""
    except LostError as error:
        found = str(error)
    named = re.match(r"(\w+)\[(.*)\]: no living rank holds it", found)
    assert (named is None) == (expected is None) == (found == "")
    if named is not None:
        first = tuple(int(side.split(":")[0]) for side in named[2].split(", ") if side)
        assert (named[1], first) == expected


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14))
def test_mirrors_are_the_next_on_another_node(places: list[int]) -> None:
    order = sorted(range(len(places)), key=lambda r: (places[:r].count(places[r]), r))
    pairs = {}
    for i, rank in enumerate(order):
        others = order[i + 1 :] + order[:i]
        if others:
            pairs[rank] = next((r for r in others if places[r] != places[rank]), others[0])
    assert dict(mirrors(range(len(places)), places.__getitem__)) == pairs


def test_what_stays_is_one_move_and_what_travels_is_cut() -> None:
    """ZeRO-0, one replica more: the old ranks copy tensor by tensor, the new one receives chunk by chunk."""
    space = Space((LogicalTensor("w", (12, 10), 0), LogicalTensor("v", (30,), 0)))
    old = build_layout(ParallelConfig(dp=2), [1], range(2), 20, lambda r: 0)
    new = build_layout(ParallelConfig(dp=3), [1], range(3), 20, lambda r: 0)
    stays = transition(space, old, new, 0, old.ranks, lambda r: 0)
    assert [m.box.numel for m in stays.local] == [120, 30]
    joins = transition(space, old, new, 2, old.ranks, lambda r: 0)
    assert [m.box.numel for m in joins.receives] == [20] * 6 + [20, 10]
    assert [m.src for m in joins.receives] == [0, 1] * 4


def test_a_mirror_skips_what_every_replica_has() -> None:
    """ZeRO-0 with one replica per stage: the tied embedding is on both stages, so mirrors keep only the rest."""
    space = Space(
        (
            LogicalTensor("tied", (6, 2), EMBED, None, (EMBED, 2)),
            LogicalTensor("a", (5, 3), 0),
            LogicalTensor("b", (7,), 1),
        )
    )
    layout = build_layout(ParallelConfig(pp=2), [1, 1], range(2), 4, lambda r: 0)
    check_index(space, layout, lambda r: 0)
    assert [p.tensor for p in layout.mirrored(space, 0)] == [2, 2]


def test_owner_and_mirror_share_the_load() -> None:
    """ZeRO-1 to ZeRO-0: a newcomer fetches each piece from its owner or its mirror, by turns along its storage."""
    space = Space((LogicalTensor("w", (64, 10), 0),))
    src = build_layout(ParallelConfig(dp=2, zero=1), [1], range(2), 10, lambda r: 0)
    dst = build_layout(ParallelConfig(dp=1), [1], [2], 10, lambda r: 0)
    share = transition(space, src, dst, 2, src.ranks, lambda r: 0)
    assert [m.src for m in share.receives] == [0, 1] * 32
