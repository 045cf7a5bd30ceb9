"""Transitions carried out in numpy, in one process."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from tests.space.strategies import NodeOf, numbered, storage
from trainsys.space.box import Box
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.places import Place
from trainsys.space.tensor import Space
from trainsys.space.transition import Move, Transition, transition


def plan(
    space: Space, src: Layout, dst: Layout, alive: Collection[int], node_of: NodeOf
) -> dict[int, Transition] | None:
    """Everybody's share, or None when something that a rank needs is lost."""
    shares = {}
    lost = set()
    for rank in sorted({*alive, *dst.ranks}):
        try:
            shares[rank] = transition(space, src, dst, rank, alive, node_of)
        except LostError as error:
            lost.add(str(error))
    if lost:
        return None
    return shares


def execute(
    space: Space, src: Layout, dst: Layout, alive: Collection[int], moves: list[Move]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Carry out the moves; returns each new storage and how often each of its cells was written."""
    full = numbered(space)
    old = {r: storage(full, space, src, r) for r in alive}
    return carry_out(old, {r: len(storage(full, space, dst, r)) for r in dst.ranks}, moves)


def carry_out(
    old: Mapping[int, np.ndarray], sizes: Mapping[int, int], moves: list[Move]
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """The same from storages and sizes that are known."""
    new = {r: np.full(size, -1) for r, size in sizes.items()}
    written = {r: np.zeros(size, dtype=int) for r, size in sizes.items()}
    for m in moves:
        run(new[m.dst], m.dst_at, m.box)[...] = run(old[m.src], m.src_at, m.box)
        run(written[m.dst], m.dst_at, m.box)[...] += 1
    return new, written


def arrives_whole(
    space: Space, src: Layout, dst: Layout, alive: Collection[int], node_of: NodeOf
) -> dict[int, Transition] | None:
    """Plan and carry out a change: storages as they must be, each cell written once; None exactly if state is lost."""
    full = numbered(space)
    have = {r: storage(full, space, src, r) for r in alive}
    need = {r: storage(full, space, dst, r) for r in dst.ranks}
    living = np.unique(np.concatenate([np.zeros(0, int), *have.values()]))
    shares = plan(space, src, dst, alive, node_of)
    assert (shares is None) == (not np.isin(np.concatenate([*need.values()]), living).all())
    if shares is None:
        return None
    moves = [m for s in shares.values() for m in (*s.local, *s.receives)]
    new, written = carry_out(have, {r: len(values) for r, values in need.items()}, moves)
    for rank in dst.ranks:
        assert np.array_equal(new[rank], need[rank])
        assert (written[rank] == 1).all()
        received = sum(m.box.numel for m in shares[rank].receives)
        assert received == np.count_nonzero(~np.isin(need[rank], have.get(rank, np.zeros(0, int))))
    return shares


def run(array: np.ndarray, at: Place, box: Box) -> np.ndarray:
    """View of `box` inside the run of a flat storage."""
    return array[at.offset : at.offset + at.box.numel].reshape(at.box.shape)[(*box.within(at.box), ...)]
