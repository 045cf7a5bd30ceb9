"""What one rank stores under one layout, portion by portion: written as they come, released as they go."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from trainsys.parallel.release import Pages, resident_bytes, small_pages
from trainsys.parallel.state import FlatState
from trainsys.space.index import Index
from trainsys.space.layout import Layout
from trainsys.space.portions import Portions
from trainsys.space.tensor import Space


class Span(NamedTuple):
    """Elements ``[start, stop)`` of a shard of a tensor, and where they begin in a rank's storage.

    `others` is how many more copies of them there are, for the copy that stands for all; -1 for each of the others.
    """

    tensor: int
    shard: int
    start: int
    stop: int
    offset: int
    others: int


class Holding:
    """One rank's storage under one layout, of which some portions are alive.

    Args:
        full: all of `state` has been written; else nothing.
    """

    def __init__(self, state: FlatState, full: bool) -> None:
        self.state = state
        self.spans: list[list[Span]] = []  # by portion
        self.alive: set[int] = set()
        self._whole = full
        self._pages = [Pages(small_pages(flat), full) for flat in state.slots.values()]

    def cut(self, space: Space, layout: Layout, rank: int, living: Collection[int], portions: Portions) -> None:
        """Learn what is in which portion, and who else of `living` has it."""
        self.spans = [[] for _ in range(portions.count)]
        for portion, span in _spans(space, layout, rank, living, portions) if rank in layout else ():
            self.spans[portion].append(span)
        if self._whole:
            self.alive, self._whole = set(range(portions.count)), False

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self._pages)

    def add(self, portion: int) -> None:
        """The portion will be written."""
        self.alive.add(portion)
        for span in self.spans[portion]:
            for pages in self._pages:
                pages.add(span.offset, span.stop - span.start)

    def release(self, portion: int) -> None:
        """The portion is not needed any more."""
        if portion in self.alive:
            self.alive.remove(portion)
            for span in self.spans[portion]:
                for pages in self._pages:
                    pages.remove(span.offset, span.stop - span.start)


def _spans(
    space: Space, layout: Layout, rank: int, living: Collection[int], portions: Portions
) -> Iterator[tuple[int, Span]]:
    index = Index(space, layout, lambda r: 0, living)
    for ward, deal, cell, offset in index.stored(rank):
        shard, start = layout.where(ward)[2], cell * deal.grain
        copies = index.holders(deal, shard, cell).copies
        others = len(copies) - 1 if copies[0] == (rank, ward) else -1
        end = min(start + deal.grain, deal.numel)
        for portion, first, stop in portions.of_piece(deal.tensor, layout.tp, start, end):
            yield portion, Span(deal.tensor, shard, first, stop, offset + first - start, others)
