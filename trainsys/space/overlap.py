"""Where the cells of one layout lie in those of another: worked out once per kind of tensor, not per tensor.

All experts of a layer and class are dealt alike in either layout: their cells are equal boxes that meet alike.
Which rank has such a cell, and where in its storage, is the tensor's own and not said here.
"""

from __future__ import annotations

from typing import NamedTuple

from trainsys.space.box import Box, cut
from trainsys.space.deal import Deal, Kind
from trainsys.space.index import Index, flat_index
from trainsys.space.places import Place


class Overlap(NamedTuple):
    """A part of a cell that lies in one cell of the other layout.

    Attributes:
        box: in coordinates of the tensor; where both layouts have its shards alike, of the row-major shard.
        parts: `box` in slabs of at most a chunk.
        own: the run of the cell with it; offsets of runs count from the cell's begin.
        shard: that has it in the other layout, and which of its cells.
        run: the run of that one.
        lead: elements from the begin of the destination's cell to the box's first.
        shards: 0, or of how many shards `box` is a part of one.
    """

    box: Box
    parts: list[Box]
    own: Place
    shard: int
    cell: int
    run: Place
    lead: int
    shards: int = 0


class Overlaps:
    """The overlaps of one layout's cells with another's.

    Args:
        own: whose cells are asked for.
        other: where they are looked for.
        chunk: elements of a slab.
        into: whether the other layout is the destination.
    """

    def __init__(self, own: Index, other: Index, chunk: int, into: bool) -> None:
        self._own, self._other, self._chunk, self._into = own, other, chunk, into
        self._made: dict[tuple[Kind, Kind, int, int], list[Overlap]] = {}

    def of(self, deal: Deal, shard: int, cell: int) -> tuple[Deal, list[Overlap]]:
        """How the tensor is dealt in the other layout, and what this cell of it meets there."""
        dealt = self._other.deals[deal.tensor]
        key = (deal.kind, dealt.kind, shard, cell)
        if key not in self._made:
            alike = deal.kind.cut_as(dealt.kind)
            self._made[key] = [self._same(deal, shard, cell)] if alike else [
                self._overlap(run, *found)
                for run in self._own.runs(deal, shard, cell)
                for found in self._other.find(dealt, run.box)
            ]  # fmt: skip
        return dealt, self._made[key]

    def _same(self, deal: Deal, shard: int, cell: int) -> Overlap:
        """The cell itself: the other layout has it too."""
        start = cell * deal.grain
        box = Box((start,), (min(start + deal.grain, deal.numel),))
        place, copies = Place(0, box), deal.kind.copies
        return Overlap(
            box, cut(box, self._chunk), place, shard - shard % copies, cell, place, 0, self._own.layout.tp // copies
        )

    def _overlap(self, own: Place, box: Box, shard: int, cell: int, run: Place) -> Overlap:
        dst = run if self._into else own
        lead = dst.offset + flat_index(dst.box, box.start)
        return Overlap(box, cut(box, self._chunk), own, shard, cell, run, lead)
