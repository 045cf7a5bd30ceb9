"""Successor layouts: who stays stays, and only the leaver's pieces change hands."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.space.strategies import RANKS, NodeOf, meshes, nodes, numbered, spaces, storage, survivors
from trainsys.config import ParallelConfig
from trainsys.space.build import build_layout, stage_spans, succeed
from trainsys.space.layout import Layout
from trainsys.space.mirrors import mirrors
from trainsys.space.tensor import EMBED, LogicalTensor, Space
from trainsys.space.transition import transition


@st.composite
def losses(draw: st.DrawFn) -> tuple[Space, Layout, tuple[int, ...], NodeOf, st.DataObject]:
    num_layers, node_of = draw(st.integers(1, 3)), draw(nodes())
    parallel, layers = draw(meshes(num_layers, RANKS))
    old = build_layout(parallel, layers, range(RANKS), draw(st.integers(1, 6)), node_of)
    return draw(spaces(num_layers)), old, layers, node_of, draw(st.data())


@settings(max_examples=120, deadline=None)
@given(losses())
def test_intact_teams_stay(case: tuple[Space, Layout, tuple[int, ...], NodeOf, st.DataObject]) -> None:
    """The same stages with other numbers of replicas: as many old teams as fit are where they were."""
    _, old, layers, node_of, data = case
    degrees, alive = data.draw(survivors(old, range(RANKS)))
    dead, new = set(range(RANKS)).difference(alive), succeed(old, degrees, layers, alive, node_of)
    assert new.replicas == degrees.stage_replicas
    assert set(new.ranks) <= set(alive)
    assert len(set(new.ranks)) == sum(new.replicas) * old.tp * old.cp
    assert [s.spans for s in new.stages] == stage_spans(layers, old.vp)
    for before, after in zip(old.stages, new.stages, strict=True):
        intact = [t for t in before.teams if not dead.intersection(t)]
        stayed = [t for t in intact if t in after.teams]
        assert len(stayed) == min(len(intact), len(after.teams))
    assert new.mirrors == mirrors([r for s in new.stages for t in s.teams for r in t], node_of)


@settings(max_examples=120, deadline=None)
@given(losses())
def test_teams_keep_their_experts(case: tuple[Space, Layout, tuple[int, ...], NodeOf, st.DataObject]) -> None:
    """Classes stay even, and no team changes its experts unless its class has too many."""
    _, old, layers, node_of, data = case
    degrees, alive = data.draw(survivors(old, range(RANKS)))
    new = succeed(old, degrees, layers, alive, node_of)
    for before, after in zip(old.stages, new.stages, strict=True):
        sizes = [len(after.members(e)) for e in range(new.ep)]
        assert max(sizes) - min(sizes) <= 1
        for e, seats in enumerate(after.expert_seats):
            assert set(seats) == set(after.members(e))
            assert len({seats.count(i) for i in set(seats)}) == 1, "every team of a class owns as many pieces"
        if new.ep == old.ep > 1:
            was = dict(zip(before.teams, before.classes, strict=True))
            changed = [e for team, e in zip(after.teams, after.classes, strict=True) if was.get(team, e) != e]
            full = [e for e in range(new.ep) if sum(was.get(t) == e for t in after.teams) > sizes[e]]
            assert bool(changed) == bool(full)


def split_owners(space: Space, layout: Layout) -> dict[object, int]:
    return {p: r for r in layout.ranks for p in layout.owned(space, r)}


def test_one_death_moves_only_its_pieces() -> None:
    """dp 4 under ZeRO-1, tied embedding, two stages: pieces of living owners stay, also those of the tied tensor."""
    space = Space(
        (
            LogicalTensor("embed", (24, 5), EMBED, None, (EMBED, 2)),
            LogicalTensor("a", (60,), 0),
            LogicalTensor("b", (60,), 1),
        )
    )
    old = build_layout(ParallelConfig(dp=4, pp=2, zero=1), [1, 1], range(8), 5, lambda r: r // 4)
    for dead in range(8):
        alive = [r for r in range(8) if r != dead]
        replicas = (3, 4) if old.where(dead)[0] == 0 else (4, 3)
        new = succeed(old, ParallelConfig(pp=2, zero=1, stage_replicas=replicas), [1, 1], alive, lambda r: r // 4)
        before, after = split_owners(space, old), split_owners(space, new)
        moved = [p for p in before if before[p] != after[p]]
        assert {before[p] for p in moved} == {dead}
        assert len(moved) == sum(r == dead for r in before.values())
        assert len({after[p] for p in moved}) == 3, "the pieces go to all the other replicas"


def test_growth_moves_only_the_newcomers_part() -> None:
    space = Space((LogicalTensor("a", (240,), 0),))
    old = build_layout(ParallelConfig(dp=3, zero=1), [1], range(3), 5, lambda r: 0)
    new = succeed(old, ParallelConfig(dp=4, zero=1), [1], range(4), lambda r: 0)
    before, after = split_owners(space, old), split_owners(space, new)
    moved = [p for p in before if before[p] != after[p]]
    assert {after[p] for p in moved} == {3}
    assert len(moved) == len(before) // 4


def test_survivors_receive_nothing_under_zero_0() -> None:
    """A death and a replacement: who stays has everything; who joins fetches exactly its storage."""
    space = Space((LogicalTensor("w", (40, 6), 0),))
    first = build_layout(ParallelConfig(dp=4, zero=0), [1], range(4), 6, lambda r: r // 2)
    fewer = succeed(first, ParallelConfig(dp=3), [1], (0, 1, 3), lambda r: r // 2)
    again = succeed(fewer, ParallelConfig(dp=4), [1], (0, 1, 3, 7), lambda r: r // 2)
    for rank in (0, 1, 3):
        assert not transition(space, fewer, again, rank, fewer.ranks, lambda r: r // 2).receives
    joined = transition(space, fewer, again, 7, fewer.ranks, lambda r: r // 2)
    assert sum(m.box.numel for m in joined.receives) == len(storage(numbered(space), space, again, 7))


def test_other_tp_starts_afresh() -> None:
    old = build_layout(ParallelConfig(dp=2, tp=2), [2], range(4), 8, lambda r: 0)
    new = succeed(old, ParallelConfig(dp=3, tp=1), [2], (0, 1, 3), lambda r: 0)
    assert [s.teams for s in new.stages] == [((0,), (1,), (3,))]
    assert new.stages[0].seats == (0, 1, 2)


def test_too_few_ranks() -> None:
    old = build_layout(ParallelConfig(dp=2), [2], range(2), 8, lambda r: 0)
    with pytest.raises(ValueError, match="needs 2 ranks but only 1"):
        succeed(old, ParallelConfig(dp=2), [2], (0,), lambda r: 0)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=10))
def test_mirrors_lie_on_another_node(places: list[int]) -> None:
    pairs = dict(mirrors(range(len(places)), places.__getitem__))
    assert sorted(pairs) == list(range(len(places)))
    for rank, peer in pairs.items():
        assert rank != peer
        assert places[peer] != places[rank] or len(set(places)) == 1


def test_mirrors_of_equal_nodes_are_spread() -> None:
    pairs = mirrors(range(8), lambda r: r // 2)
    assert len({peer for _, peer in pairs}) == 8, "with equal nodes everybody mirrors one peer"
    assert mirrors([3], lambda r: 0) == ()
