"""Transitions carried out in numpy, in one process."""

from __future__ import annotations

from collections.abc import Collection

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
    new = {r: np.full(len(storage(full, space, dst, r)), -1) for r in dst.ranks}
    written = {r: np.zeros(len(a), dtype=int) for r, a in new.items()}
    for m in moves:
        run(new[m.dst], m.dst_at, m.box)[...] = run(old[m.src], m.src_at, m.box)
        run(written[m.dst], m.dst_at, m.box)[...] += 1
    return new, written


def run(array: np.ndarray, at: Place, box: Box) -> np.ndarray:
    """View of `box` inside the run of a flat storage."""
    return array[at.offset : at.offset + at.box.numel].reshape(at.box.shape)[(*box.within(at.box), ...)]
