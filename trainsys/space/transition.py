"""Transitions between two layouts: who sends which box to whom. Pure, and the same on every rank.

The bytes that travel are exactly those a rank needs and does not hold: every box of a destination piece comes from the
rank itself if its old storage has it, else from one holder: on the same node where possible, and among equals in turns.
Receiver and sender make the same choice from the box alone, so nobody talks to agree and nobody plans for others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod

from trainsys.space.box import Box, flat_boxes
from trainsys.space.layout import Layout, Piece, Team
from trainsys.space.tensor import LogicalTensor, Space


class LostError(ValueError):
    """Some coordinates have no living holder."""


@dataclass(frozen=True)
class Place:
    """A contiguous run of a rank's flat storage: the elements of `box`, row-major, from `offset` on."""

    offset: int
    box: Box


@dataclass(frozen=True)
class Move:
    """Copy `box` of tensor number `tensor` from `src`'s storage to `dst`'s (the same rank: a local copy)."""

    tensor: int
    box: Box
    src: int
    dst: int
    src_at: Place
    dst_at: Place


def piece_places(tensor: LogicalTensor, tp: int, piece: Piece, offset: int) -> list[Place]:
    """The runs of one piece stored at `offset`, as boxes in global coordinates."""
    places = []
    origin = tensor.local_origin(tp, piece.shard)
    for box in flat_boxes(tensor.local_shape(tp), piece.start, piece.stop):
        places.append(Place(offset, box.shift(origin)))
        offset += box.numel
    return places


def storage_places(space: Space, layout: Layout, rank: int) -> list[tuple[Piece, int]]:
    """Each piece of the rank's storage with its offset."""
    result, offset = [], 0
    for piece in layout.storage(space, rank):
        result.append((piece, offset))
        offset += piece.numel
    return result


class Index:
    """Answers "which ranks hold this box, and where" for one layout, looking only at what is asked for.

    Args:
        alive: ranks that count as holders; None: all of the layout's.
    """

    def __init__(self, space: Space, layout: Layout, alive: Collection[int] | None = None) -> None:
        self.space, self.layout = space, layout
        self._alive = None if alive is None else frozenset(alive)
        self._offsets: dict[int, dict[Piece, int]] = {}
        self._pieces: dict[tuple[int, int], list[tuple[Piece, Team]]] = {}

    def find(self, tensor: int, box: Box) -> Iterator[tuple[Box, list[tuple[int, Place]]]]:
        """Cut `box` at the borders of the layout's pieces; yield each part with its holders."""
        logical, tp = self.space.tensors[tensor], self.layout.tp
        copies = logical.copies(tp)
        for shard in range(0, tp, copies):
            part = box.intersect(logical.local_box(tp, shard))
            if part is None:
                continue
            shards = range(shard, shard + copies)
            for number in self._numbers(logical, tp, shard, part):
                piece = self._of(tensor, shard)[number][0]
                for run, place in enumerate(piece_places(logical, tp, piece, 0)):
                    common = part.intersect(place.box)
                    if common is not None:
                        yield common, self._holders(tensor, shards, number, run)

    def _of(self, tensor: int, shard: int) -> list[tuple[Piece, Team]]:
        key = (tensor, shard)
        if key not in self._pieces:
            self._pieces[key] = list(self.layout.pieces(self.space.tensors[tensor], tensor, shard))
        return self._pieces[key]

    def _numbers(self, logical: LogicalTensor, tp: int, shard: int, part: Box) -> range:
        """Numbers of the pieces that `part` may touch, from the flat index of its first and last element."""
        shape, origin = logical.local_shape(tp), logical.local_origin(tp, shard)
        strides = [prod(shape[d + 1 :]) for d in range(len(shape))]
        first = sum((a - o) * s for a, o, s in zip(part.start, origin, strides, strict=True))
        last = sum((b - 1 - o) * s for b, o, s in zip(part.stop, origin, strides, strict=True))
        return range(first // self.layout.chunk, last // self.layout.chunk + 1)

    def _holders(self, tensor: int, shards: Iterable[int], number: int, run: int) -> list[tuple[int, Place]]:
        logical, found = self.space.tensors[tensor], []
        for shard in shards:
            piece, owner = self._of(tensor, shard)[number]
            for rank in self.layout.holders(logical, shard, owner):
                if self._alive is None or rank in self._alive:
                    offset = self.offsets(rank)[piece]
                    found.append((rank, piece_places(logical, self.layout.tp, piece, offset)[run]))
        return found

    def offsets(self, rank: int) -> dict[Piece, int]:
        """Where each piece of the rank's storage begins."""
        if rank not in self._offsets:
            self._offsets[rank] = dict(storage_places(self.space, self.layout, rank))
        return self._offsets[rank]


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

    Looks at the rank's own pieces and at the holders of what they overlap, never at all ranks.

    Raises:
        LostError: when a coordinate that this rank needs has no living holder.
    """
    sources, targets = Index(space, src, alive), Index(space, dst)
    needed = _incoming(sources, targets, rank, node_of) if rank in dst.ranks else []
    given = _outgoing(sources, targets, rank, node_of) if rank in src.ranks and rank in alive else []
    return Transition(
        rank,
        tuple(m for m in needed if m.src == rank),
        tuple(sorted(given, key=_order)),
        tuple(sorted((m for m in needed if m.src != rank), key=_order)),
    )


def _incoming(sources: Index, targets: Index, rank: int, node_of: Callable[[int], int]) -> list[Move]:
    """Every move that fills the new storage of `rank`, local copies included."""
    space, dst, moves = targets.space, targets.layout, []
    for piece, offset in targets.offsets(rank).items():
        logical = space.tensors[piece.tensor]
        for place in piece_places(logical, dst.tp, piece, offset):
            for box, holders in sources.find(piece.tensor, place.box):
                if not holders:
                    raise LostError(f"{logical.name}{box}: no living rank holds it")
                src, src_at = _choose(holders, rank, node_of, place.offset // dst.chunk)
                moves.append(Move(piece.tensor, box, src, rank, src_at, place))
    return moves


def _outgoing(sources: Index, targets: Index, rank: int, node_of: Callable[[int], int]) -> list[Move]:
    """Every move in which others choose `rank` as their source: the same choices, seen from the other end."""
    space, src, moves = sources.space, sources.layout, []
    for piece, offset in sources.offsets(rank).items():
        logical = space.tensors[piece.tensor]
        for place in piece_places(logical, src.tp, piece, offset):
            holders: list[tuple[int, Place]] | None = None
            for box, wanting in targets.find(piece.tensor, place.box):
                for dst, dst_at in wanting:
                    if dst == rank:
                        continue
                    if holders is None:
                        holders = next(found for common, found in sources.find(piece.tensor, box) if common == box)
                    if _choose(holders, dst, node_of, dst_at.offset // targets.layout.chunk) == (rank, place):
                        moves.append(Move(piece.tensor, box, rank, dst, place, dst_at))
    return moves


def _choose(holders: list[tuple[int, Place]], rank: int, node_of: Callable[[int], int], turn: int) -> tuple[int, Place]:
    """The source for `rank`: itself, else one on its node, else any; equal ones take turns along its storage."""
    for holder in holders:
        if holder[0] == rank:
            return holder
    near = sorted((h for h in holders if node_of(h[0]) == node_of(rank)), key=lambda h: h[0])
    near = near or sorted(holders, key=lambda h: h[0])
    return near[(turn + rank) % len(near)]


def _order(move: Move) -> tuple[int, tuple[int, ...], int]:
    return (move.tensor, move.box.start, move.dst_at.offset)


def check_covered(space: Space, layout: Layout, alive: Collection[int]) -> None:
    """Every coordinate of `layout` has a living holder.

    Raises:
        LostError: naming the first that has none.
    """
    index = Index(space, layout, alive)
    for ordinal, tensor in enumerate(space.tensors):
        for box, holders in index.find(ordinal, Box.whole(tensor.shape)):
            if not holders:
                raise LostError(f"{tensor.name}{box}: no living rank holds it")
