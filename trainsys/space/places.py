"""Places: contiguous runs of a rank's flat storage, as boxes in global coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.space.box import Box, flat_boxes
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import LogicalTensor, Space


@dataclass(frozen=True, slots=True)
class Place:
    """A contiguous run of a rank's flat storage: the elements of `box`, row-major, from `offset` on."""

    offset: int
    box: Box


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
