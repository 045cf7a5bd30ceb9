"""Generation groups: the published bytes per rank, no second copy, and the published example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainsys.config import ParallelConfig
from trainsys.models.geometry import split_layers
from trainsys.space.build import build_layout
from trainsys.space.generation import Generation, generation, received_share
from trainsys.space.layout import Layout
from trainsys.space.stage import Stage
from trainsys.space.tensor import EMBED, LogicalTensor, Space
from trainsys.space.transition import Transition, transition

LAYERS = 4
CASES = [
    (p, t, d, p_g, t_g)
    for p in (1, 2, 4)
    for t in (1, 2, 4)
    for d in (1, 2)
    for p_g in (1, 2, 4)
    for t_g in (1, 2, 4)
    if p % p_g == 0 and t % t_g == 0
]


def equal_space() -> Space:
    """Every stage weighs the same for p = 1, 2, 4, and every tensor is split: by rows, or by columns."""
    rows = [LogicalTensor(f"rows{i}", (8, 6), i, 0) for i in range(LAYERS)]
    columns = [LogicalTensor(f"columns{i}", (3, 8), i, 1) for i in range(LAYERS)]
    return Space((*rows, *columns))


def mesh(p: int, t: int, d: int, zero: int = 0) -> Layout:
    parallel = ParallelConfig(pp=p, tp=t, dp=d, zero=zero)
    return build_layout(parallel, split_layers(LAYERS, p), range(p * t * d), 20, lambda r: r)


def stored(space: Space, layout: Layout, rank: int) -> int:
    return sum(piece.numel for piece in layout.storage(space, rank))


def shares(space: Space, found: Generation) -> dict[int, Transition]:
    """The switch, each training replica on its own node."""
    node = {r: found.source.where(r)[1] for r in found.source.ranks}
    ranks = found.source.ranks
    return {r: transition(space, found.source, found.layout, r, ranks, node.__getitem__) for r in ranks}


@pytest.mark.parametrize(("p", "t", "d", "p_g", "t_g"), CASES)
def test_published_bytes_and_nothing_held_twice(p: int, t: int, d: int, p_g: int, t_g: int) -> None:
    space = equal_space()
    found = generation(mesh(p, t, d, zero=1), t_g, p_g)
    assert found.layout.replicas == (d * p * t // (p_g * t_g),) * p_g
    assert found.layout.ranks == found.source.ranks
    for rank, share in shares(space, found).items():
        received = sum(m.box.numel for m in share.receives)
        assert received == received_share(t, p, t_g, p_g) * space.numel
        assert received == (t * p - t_g * p_g) * space.numel / (t_g * p_g * t * p)
        assert sum(m.box.numel for m in share.local) == stored(space, found.source, rank)  # all of it is used again
        assert stored(space, found.layout, rank) * t_g * p_g == space.numel  # the peak of weights
        assert {m.src for m in share.receives} <= set(found.gather[rank]) - {rank}
        assert len(found.gather[rank]) == p * t // (p_g * t_g)


@pytest.mark.parametrize(("p", "t", "d", "p_g", "t_g"), CASES)
def test_a_replica_holds_the_model_once(p: int, t: int, d: int, p_g: int, t_g: int) -> None:
    space = equal_space()
    found = generation(mesh(p, t, d), t_g, p_g)
    for k in range(found.layout.replicas[0]):
        members = [r for r, replica in found.replica.items() if replica == k]
        assert sorted(found.layout.where(r)[::2] for r in members) == [(s, j) for s in range(p_g) for j in range(t_g)]
        assert sum(stored(space, found.layout, r) for r in members) == space.numel


def test_the_published_example() -> None:
    """1-4-2 to 1-2-2-2 on 8 ranks (section 5 there), ranks from 0."""
    found = generation(mesh(1, 4, 2), 2, 1)
    assert set(found.layout.stages[0].teams) == {(0, 2), (1, 3), (4, 6), (5, 7)}
    assert set(found.gather.values()) == {(0, 1), (2, 3), (4, 5), (6, 7)}


def test_consecutive_ranks_hold_a_second_copy() -> None:
    """The naive groups of the same example: some ranks cannot use their own shard, so they receive more."""
    space = equal_space()
    found = generation(mesh(1, 4, 2), 2, 1)
    (stage,) = found.layout.stages
    naive = replace(found, layout=replace(found.layout, stages=(consecutive(stage),)))
    ours, theirs = (
        [sum(m.box.numel for m in share.receives) for share in shares(space, way).values()] for way in (found, naive)
    )
    assert set(ours) == {space.numel // 4}
    assert max(theirs) == space.numel // 2
    unused = [
        stored(space, naive.source, r) - sum(m.box.numel for m in share.local)
        for r, share in shares(space, naive).items()
    ]
    assert max(unused) == space.numel // 4


def consecutive(stage: Stage) -> Stage:
    ranks = sorted(r for team in stage.teams for r in team)
    return replace(stage, teams=tuple((a, a + 1) for a in ranks[::2]))


def test_replicated_tensors_and_uneven_blocks_never_need_the_own_shard_again() -> None:
    """Norms, embedding and head: the formula no longer fits, but still everything at hand is used."""
    tensors = (
        LogicalTensor("embed", (16, 6), EMBED, 0),
        *(LogicalTensor(f"w{i}", (8, 6), i, 0) for i in range(LAYERS)),
        *(LogicalTensor(f"norm{i}", (6,), i) for i in range(LAYERS)),
        LogicalTensor("head", (16, 6), LAYERS, 0),
    )
    space = Space(tensors)
    for p, t, d, p_g, t_g in CASES[::4]:
        found = generation(mesh(p, t, d), t_g, p_g)
        for rank, share in shares(space, found).items():
            assert sum(m.box.numel for m in share.local) == stored(space, found.source, rank)


def test_what_cannot_be_grouped_is_said() -> None:
    with pytest.raises(ValueError, match=r"generation tp=3 does not divide the training tp=4; set tp=1, 2, 4"):
        generation(mesh(1, 4, 1), 3, 1)
    with pytest.raises(ValueError, match=r"generation pp=4 does not divide the training pp=2; set pp=1, 2"):
        generation(mesh(2, 1, 1), 1, 4)
    ragged = build_layout(ParallelConfig(pp=2, stage_replicas=(2, 1)), [2, 2], range(3), 7, lambda r: 0)
    with pytest.raises(ValueError, match=r"got \(2, 1\)"):
        generation(ragged, 1, 1)
