"""Evidence before a transition commits: every element owned once, its bits and its replicas unchanged.

Each rank hashes what it has (`hashing`); the manager only adds up and compares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from trainsys.elastic.hashing import MASK, Hashes, hash_run
from trainsys.elastic.messages import Census
from trainsys.parallel.state import FlatState
from trainsys.space.index import Index
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, Space


def take_census(
    space: Space,
    rank: int,
    src: Layout | None,
    alive: Iterable[int],
    old: FlatState | None,
    dst: Layout,
    new: FlatState,
    step: int,
    before: dict[tuple[int, str], int] | None = None,
) -> Census:
    """One rank's evidence for a transition from `src` (None: there is none to compare with) to `dst`.

    Args:
        alive: ranks that hold a part of the state.
        step: optimizer steps that `old` has seen.
        before: the hashes of the source, if taken already, as its parts were released.
    """
    living = frozenset(alive)
    if before is None:
        before = {} if src is None or old is None else _vouched(space, rank, src, living, old)
    after: dict[tuple[int, str], int] = {}
    elements: dict[int, int] = {}
    owned: dict[tuple[int, int, int], int] = {}
    copies = []
    mine = set(dst.owned(space, rank)) if rank in dst.ranks else set()
    for piece in new.pieces:
        logical = space.tensors[piece.tensor]
        hashes = hash_run(new, new.offsets[piece], logical, dst.tp, piece.shard, piece.start, piece.stop)
        first = logical.first_copy(dst.tp, piece.shard)
        name = (piece.tensor, first, piece.start)
        if piece not in mine or piece.shard != first:
            copies.append((name, _mix(hashes)))
        else:
            owned[name] = _mix(hashes)
            elements[piece.tensor] = elements.get(piece.tensor, 0) + piece.numel
            _add(after, piece.tensor, hashes)
    return Census(before, after, elements, owned, tuple(copies), step if src is not None and rank in living else None)


def _vouched(
    space: Space, rank: int, src: Layout, living: frozenset[int], old: FlatState
) -> dict[tuple[int, str], int]:
    """(tensor, slot) -> hash of the elements for which `rank` stands in the source."""
    before: dict[tuple[int, str], int] = {}
    for tensor, shard, start, stop, offset in _witnessed(space, src, rank, living) if rank in src else ():
        _add(before, tensor, hash_run(old, offset, space.tensors[tensor], src.tp, shard, start, stop))
    return before


def check_census(space: Space, reports: Mapping[int, Census], compare: bool, step: int) -> None:
    """The manager's verdict over all ranks' evidence.

    Args:
        compare: False at a fresh start, where there is no source.
        step: optimizer steps committed.

    Raises:
        ValueError: naming the first tensor, slot or step that does not add up.
    """
    for rank, census in reports.items():
        if census.step not in (None, step):
            raise ValueError(f"census: rank {rank} has seen {census.step} steps of {step}")
    elements: dict[int, int] = {}
    owners: dict[tuple[int, int, int], int] = {}
    for census in reports.values():
        for tensor, n in census.elements.items():
            elements[tensor] = elements.get(tensor, 0) + n
        owners.update(census.owned)
    for ordinal, logical in enumerate(space.tensors):
        if elements.get(ordinal, 0) != logical.numel:
            raise ValueError(f"census: {logical.name} has {elements.get(ordinal, 0)} of {logical.numel} elements owned")
    for rank, census in reports.items():
        for key, value in census.copies:
            if owners.get(key) != value:
                raise ValueError(f"census: rank {rank} holds another {space.tensors[key[0]].name} than its owner")
    if compare:
        for ordinal, logical in enumerate(space.tensors):
            for slot in SLOTS:
                source = sum(c.before.get((ordinal, slot), 0) for c in reports.values()) & MASK
                target = sum(c.after.get((ordinal, slot), 0) for c in reports.values()) & MASK
                if source != target:
                    raise ValueError(f"census: {logical.name}.{slot} changed in transit")


def _witnessed(
    space: Space, layout: Layout, rank: int, living: frozenset[int]
) -> Iterator[tuple[int, int, int, int, int]]:
    """(tensor, shard, start, stop, offset) of what `rank` vouches for, so that every element has one witness."""
    index = Index(space, layout, lambda r: 0, living)
    for ward, deal, cell, offset in index.stored(rank):
        shard = layout.where(ward)[2]
        if index.holders(deal, shard, cell).copies[0] == (rank, ward):
            start = cell * deal.grain
            yield deal.tensor, shard, start, min(start + deal.grain, deal.numel), offset


def _add(totals: dict[tuple[int, str], int], tensor: int, hashes: Hashes) -> None:
    for slot, value in zip(SLOTS, hashes, strict=True):
        totals[tensor, slot] = (totals.get((tensor, slot), 0) + value) & MASK


def _mix(hashes: Hashes) -> int:
    total = 0
    for value in hashes:
        total = (total * 0x100000001B3 + value) & MASK
    return total
