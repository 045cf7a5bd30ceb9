"""Transitions between two layouts: who sends which box to whom. Pure, and the same on every rank.

The bytes that travel are exactly those a rank needs and does not hold: every box of its new storage comes from the rank
itself if its old storage has it, else from one holder: on the same node where possible, and among equals in turns.
Receiver and sender make the same choice from the box alone, so nobody talks to agree and nobody plans for others.

What stays on a rank is one move however large; what travels is cut into slabs of at most a chunk, so that staging stays
small and the sources share the load.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from trainsys.space.box import Box
from trainsys.space.coverage import LostError
from trainsys.space.deal import Shelf
from trainsys.space.index import Holders, Index
from trainsys.space.layout import Layout
from trainsys.space.overlap import Overlap, Overlaps
from trainsys.space.places import Place
from trainsys.space.tensor import Space


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `box` of tensor number `tensor` from `src`'s storage to `dst`'s (the same rank: a local copy).

    `box`, and those of the places, are in coordinates of the tensor; with `shards`, for layouts that cut the tensor
    into equally many, they are row-major intervals of a shard.
    """

    tensor: int
    box: Box
    src: int
    dst: int
    src_at: Place
    dst_at: Place
    shards: int = 0


@dataclass(frozen=True)
class Transition:
    """One rank's share of a transition. Both ends of a pair see its moves in the same order."""

    rank: int
    local: tuple[Move, ...]
    sends: tuple[Move, ...]
    receives: tuple[Move, ...]


def transition(
    space: Space, src: Layout, dst: Layout, rank: int, alive: Collection[int], node_of: Callable[[int], int]
) -> Transition:
    """What `rank` copies, sends and receives to go from `src` (as far as alive) to `dst`.

    Looks at the rank's own cells and computes who holds what they overlap; its time does not grow with the ranks but
    for the tables of who is where.

    Raises:
        LostError: when a coordinate that this rank needs has no living holder.
    """
    living = frozenset(alive)
    sources, targets = Index(space, src, node_of, living), Index(space, dst, node_of)
    local, receives = _incoming(sources, targets, rank, node_of) if rank in dst else ([], [])
    sends = _outgoing(sources, targets, rank, node_of) if rank in src and rank in living else []
    return Transition(rank, tuple(local), tuple(sorted(sends, key=_order)), tuple(sorted(receives, key=_order)))


def _incoming(
    sources: Index, targets: Index, rank: int, node_of: Callable[[int], int]
) -> tuple[list[Move], list[Move]]:
    """Every move that fills the new storage of `rank`: local copies, and those from others."""
    dst, node, overlaps = targets.layout, node_of(rank), Overlaps(targets, sources, targets.layout.chunk, False)
    local, receives = [], []
    for ward, deal, cell, offset in targets.stored(rank):
        tensor = deal.tensor
        dealt, found = overlaps.of(deal, dst.where(ward)[2], cell)
        for o in found:
            place = Place(offset + o.own.offset, o.own.box)
            holders = sources.holders(dealt, o.shard, o.cell)
            if not holders.ranks:
                raise LostError(f"{sources.space.tensors[tensor].name}{o.box}: no living rank holds it")
            if rank in holders.ward:
                at = _source(sources, tensor, o, holders, rank)
                local.append(Move(tensor, o.box, rank, rank, at, place, o.shards))
                continue
            near, turn = holders.near(node), (offset + o.lead) // dst.chunk + rank
            for k, part in enumerate(o.parts):
                src = near[(turn + k) % len(near)]
                at = _source(sources, tensor, o, holders, src)
                receives.append(Move(tensor, part, src, rank, at, place, o.shards))
    return local, receives


def _outgoing(sources: Index, targets: Index, rank: int, node_of: Callable[[int], int]) -> list[Move]:
    """Every move in which others choose `rank` as their source: the same choices, seen from the other end."""
    src, node, moves = sources.layout, node_of(rank), []
    chunk, overlaps = targets.layout.chunk, Overlaps(sources, targets, targets.layout.chunk, True)
    asking: dict[tuple[int, int], list[Askers]] = {}
    for ward, deal, cell, offset in sources.stored(rank):
        tensor, shard = deal.tensor, src.where(ward)[2]
        holders = sources.holders(deal, shard, cell)
        if holders.ward[rank] != ward:
            continue  # it has another copy of the same, and serves from that one
        dealt, found = overlaps.of(deal, shard, cell)
        for o in found:
            wanting = targets.holders(dealt, o.shard, o.cell)
            key = (id(holders), id(wanting))
            if key not in asking:
                asking[key] = _asking(holders, wanting, rank, node, targets)
            place, chosen = Place(offset + o.own.offset, o.own.box), []
            for askers in asking[key]:
                begin = askers.base + askers.shelf.offset(tensor, o.cell)
                dst_at = Place(begin + o.run.offset, o.run.box)
                turn = (begin + o.lead) // chunk
                chosen += [(*who, dst_at, askers.among) for who in askers.choosing(turn, len(o.parts))]
            for _, dst, first, dst_at, among in sorted(chosen, key=lambda c: c[0]):
                moves += [Move(tensor, part, rank, dst, place, dst_at, o.shards) for part in o.parts[first::among]]
    return moves


class Askers:
    """Ranks that store the same cells at the same offset and choose among equally many sources.

    Attributes:
        shelf, base: how and from where on they store the cells.
        number: of the rank that is asked among the sources.
        among: how many sources there are.
    """

    def __init__(self, shelf: Shelf, base: int, number: int, among: int) -> None:
        self.shelf, self.base, self.number, self.among = shelf, base, number, among
        self._by_rest: dict[int, list[tuple[int, int]]] = {}

    def add(self, place: int, rank: int) -> None:
        """`place`: among all who may ask."""
        self._by_rest.setdefault(rank % self.among, []).append((place, rank))

    def choosing(self, turn: int, num_parts: int) -> Iterator[tuple[int, int, int]]:
        """(place, rank, first part) of those whose turns (see `_incoming`) fall on the rank that is asked."""
        for first in range(min(num_parts, self.among)):
            for place, rank in self._by_rest.get((self.number - turn - first) % self.among, ()):
                yield place, rank, first


def _asking(holders: Holders, wanting: Holders, rank: int, node: int, targets: Index) -> list[Askers]:
    """Who may choose `rank`."""
    groups: dict[tuple[int, int, int, int], Askers] = {}
    place = 0
    for where, copies in wanting.copies_by_node.items():
        if where != node and where in holders.by_node:
            continue
        near = holders.near(where)
        number = bisect_left(near, rank)
        for dst, ward in copies:
            if dst not in holders.ward:
                shelf, base = targets.shelf(dst, ward)
                key = (id(shelf), base, number, len(near))
                if key not in groups:
                    groups[key] = Askers(shelf, base, number, len(near))
                groups[key].add(place, dst)
                place += 1
    return list(groups.values())


def _source(sources: Index, tensor: int, found: Overlap, holders: Holders, rank: int) -> Place:
    """The run with an overlap in the storage of one of its holders."""
    return Place(sources.offset(rank, holders.ward[rank], tensor, found.cell) + found.run.offset, found.run.box)


def _order(move: Move) -> tuple[int, tuple[int, ...], int]:
    return (move.tensor, move.box.start, move.dst_at.offset)
