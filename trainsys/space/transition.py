"""Transitions between two layouts: who sends which box to whom. Pure, and the same on every rank.

The bytes that travel are exactly those a rank needs and does not hold: every box of its new storage comes from the rank
itself if its old storage has it, else from one holder: on the same node where possible, and among equals in turns.
Receiver and sender make the same choice from the box alone, so nobody talks to agree and nobody plans for others.

What stays on a rank is one move however large; what travels is cut into slabs of at most a chunk, so that staging stays
small and the sources share the load.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from trainsys.space.box import Box, cut
from trainsys.space.coverage import LostError
from trainsys.space.index import Holders, Index, flat_index
from trainsys.space.layout import Layout
from trainsys.space.places import Place
from trainsys.space.tensor import Space


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `box` of tensor number `tensor` from `src`'s storage to `dst`'s (the same rank: a local copy)."""

    tensor: int
    box: Box
    src: int
    dst: int
    src_at: Place
    dst_at: Place


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
    space, dst, node = targets.space, targets.layout, node_of(rank)
    local, receives = [], []
    for ward, deal, cell, offset in targets.stored(rank):
        tensor = deal.tensor
        for run in targets.runs(deal, dst.where(ward)[2], cell):
            place = Place(offset + run.offset, run.box)
            for found in sources.find(tensor, run.box):
                holders = found.holders
                if not holders.ranks:
                    raise LostError(f"{space.tensors[tensor].name}{found.box}: no living rank holds it")
                if rank in holders.ward:
                    src_at = _place(sources, tensor, found.cell, found.run, holders, rank)
                    local.append(Move(tensor, found.box, rank, rank, src_at, place))
                    continue
                near = holders.near(node)
                turn = _turn(place, found.box, dst.chunk) + rank
                for k, part in enumerate(cut(found.box, dst.chunk)):
                    src = near[(turn + k) % len(near)]
                    src_at = _place(sources, tensor, found.cell, found.run, holders, src)
                    receives.append(Move(tensor, part, src, rank, src_at, place))
    return local, receives


def _outgoing(sources: Index, targets: Index, rank: int, node_of: Callable[[int], int]) -> list[Move]:
    """Every move in which others choose `rank` as their source: the same choices, seen from the other end."""
    chunk, src, node, moves = targets.layout.chunk, sources.layout, node_of(rank), []
    asking: dict[tuple[int, int], list[tuple[int, int, int, int]]] = {}
    for ward, deal, cell, offset in sources.stored(rank):
        tensor, shard = deal.tensor, src.where(ward)[2]
        holders = sources.holders(deal, shard, cell)
        if holders.ward[rank] != ward:
            continue  # it has another copy of the same, and serves from that one
        for run in sources.runs(deal, shard, cell):
            place = Place(offset + run.offset, run.box)
            for found in targets.find(tensor, run.box):
                key = (id(holders), id(found.holders))
                if key not in asking:
                    asking[key] = _asking(holders, found.holders, rank, node)
                if not asking[key]:
                    continue
                parts = cut(found.box, chunk)
                for dst, of, number, among in asking[key]:
                    dst_at = Place(targets.offset(dst, of, tensor, found.cell) + found.run.offset, found.run.box)
                    first = (number - _turn(dst_at, found.box, chunk) - dst) % among
                    moves += [Move(tensor, part, rank, dst, place, dst_at) for part in parts[first::among]]
    return moves


def _asking(holders: Holders, wanting: Holders, rank: int, node: int) -> list[tuple[int, int, int, int]]:
    """Who may choose `rank`: (destination, its ward, the number of `rank` among its sources, how many those are)."""
    result = []
    for where, copies in wanting.copies_by_node.items():
        if where == node or where not in holders.by_node:
            near = holders.near(where)
            number = near.index(rank)
            result += [(dst, ward, number, len(near)) for dst, ward in copies if dst not in holders.ward]
    return result


def _turn(dst_at: Place, box: Box, chunk: int) -> int:
    """Which of equal sources the first slab of `box` comes from, counted in chunks along the destination's storage."""
    return (dst_at.offset + flat_index(dst_at.box, box.start)) // chunk


def _place(index: Index, tensor: int, cell: int, run: Place, holders: Holders, rank: int) -> Place:
    """A run of a cell in the storage of one of its holders."""
    return Place(index.offset(rank, holders.ward[rank], tensor, cell) + run.offset, run.box)


def _order(move: Move) -> tuple[int, tuple[int, ...], int]:
    return (move.tensor, move.box.start, move.dst_at.offset)
