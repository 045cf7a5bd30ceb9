"""Transitions between two layouts: who sends which box to whom. Pure, and the same on every rank.

The bytes that travel are exactly those a rank needs and does not hold: every box of a destination piece comes from the
rank itself if its old storage has it, else from one holder: on the same node where possible, and among equals the one
that this rank has asked for least so far. Nobody talks to agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from trainsys.space.box import Box, flat_boxes
from trainsys.space.layout import Layout, Piece
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


class Sources:
    """Answers "which living ranks hold this box, and where" for one source layout."""

    def __init__(self, space: Space, layout: Layout, alive: Collection[int]) -> None:
        self.space, self.layout = space, layout
        self._offsets: dict[int, dict[Piece, int]] = {
            r: dict(storage_places(space, layout, r)) for r in layout.ranks if r in alive
        }
        self._pieces = {
            (o, shard): list(layout.pieces(t, o, shard))
            for o, t in enumerate(space.tensors)
            for shard in range(layout.tp)
        }

    def find(self, tensor: int, box: Box) -> Iterator[tuple[Box, list[tuple[int, Place]]]]:
        """Cut `box` at the borders of the source's pieces; yield each part with its living holders.

        Raises:
            LostError: naming the first part that nobody alive holds.
        """
        logical, tp = self.space.tensors[tensor], self.layout.tp
        for shard in range(tp if logical.split is not None else 1):
            part = box.intersect(logical.local_box(tp, shard))
            if part is None:
                continue
            shards = [shard] if logical.split is not None else range(tp)
            for index in self._chunks(logical, tp, shard, part):
                piece = self._pieces[tensor, shard][index][0]
                for i, place in enumerate(piece_places(logical, tp, piece, 0)):
                    common = part.intersect(place.box)
                    if common is not None:
                        yield common, self._holders(tensor, shards, index, i, common)

    def _chunks(self, logical: LogicalTensor, tp: int, shard: int, part: Box) -> range:
        """Numbers of the pieces that `part` may touch, from the flat index of its first and last element."""
        shape, origin = logical.local_shape(tp), logical.local_origin(tp, shard)
        strides = [prod(shape[d + 1 :]) for d in range(len(shape))]
        first = sum((a - o) * s for a, o, s in zip(part.start, origin, strides, strict=True))
        last = sum((b - 1 - o) * s for b, o, s in zip(part.stop, origin, strides, strict=True))
        return range(first // self.layout.chunk, last // self.layout.chunk + 1)

    def _holders(self, tensor: int, shards: Sequence[int], index: int, run: int, box: Box) -> list[tuple[int, Place]]:
        logical, found = self.space.tensors[tensor], []
        for shard in shards:
            piece, owner = self._pieces[tensor, shard][index]
            for rank in self.layout.holders(logical, shard, owner):
                offset = self._offsets.get(rank, {}).get(piece)
                if offset is not None:
                    found.append((rank, piece_places(logical, self.layout.tp, piece, offset)[run]))
        if not found:
            raise LostError(f"{logical.name}{box}: no living rank holds it")
        return found


def incoming(space: Space, sources: Sources, dst: Layout, rank: int, node_of: Callable[[int], int]) -> list[Move]:
    """Every move that fills the new storage of `rank`, local copies included."""
    moves = []
    asked: Counter[int] = Counter()  # elements wanted of each source so far
    for piece, offset in storage_places(space, dst, rank):
        logical = space.tensors[piece.tensor]
        for place in piece_places(logical, dst.tp, piece, offset):
            for box, holders in sources.find(piece.tensor, place.box):
                src, src_at = _choose(holders, rank, node_of, asked)
                asked[src] += box.numel
                moves.append(Move(piece.tensor, box, src, rank, src_at, place))
    return moves


def _choose(
    holders: list[tuple[int, Place]], rank: int, node_of: Callable[[int], int], asked: Counter[int]
) -> tuple[int, Place]:
    for holder in holders:
        if holder[0] == rank:
            return holder
    near = [h for h in holders if node_of(h[0]) == node_of(rank)] or holders
    near = sorted(near, key=lambda h: h[0])
    near = near[rank % len(near) :] + near[: rank % len(near)]  # different ranks begin with different sources
    return min(near, key=lambda h: asked[h[0]])


@dataclass(frozen=True)
class Transition:
    """One rank's share of a transition."""

    rank: int
    local: tuple[Move, ...]
    sends: tuple[Move, ...]
    receives: tuple[Move, ...]


def transition(
    space: Space, src: Layout, dst: Layout, rank: int, alive: Collection[int], node_of: Callable[[int], int]
) -> Transition:
    """What `rank` copies, sends and receives to go from `src` (as far as alive) to `dst`.

    Raises:
        LostError: when a needed coordinate has no living holder; every rank raises the same.
    """
    sources = Sources(space, src, alive)
    moves = [m for r in dst.ranks for m in incoming(space, sources, dst, r, node_of)]
    return Transition(
        rank,
        tuple(m for m in moves if m.dst == rank and m.src == rank),
        tuple(m for m in moves if m.src == rank and m.dst != rank),
        tuple(m for m in moves if m.dst == rank and m.src != rank),
    )
