"""How pieces are dealt to ranks, as arithmetic: which ones a replica owns, and where each lies in its storage.

`Layout` defines ownership by walking pieces; here the same answers come in closed form. The stages that hold a tensor
take turns along its pieces and the seats of a stage take turns along the stage's, so what a replica owns before any
point is a number of full cycles of the seat table plus a look-up in it. The cost goes with tensors, never with pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deal:
    """How one tensor is dealt: in cells of `grain` elements per shard, to `stages` in turn.

    A tensor that every one of its holders has in full, end to end, is a single cell; else a cell is a piece.

    Attributes:
        tensor: its number in the space.
        copies: neighbouring tp ranks with equal shards: 1 where tp cuts it for each, tp where it is replicated.
        numel: elements of one shard.
        grain: elements of a cell; the last of a shard may be smaller.
        stages: those that hold it.
        whole: one cell per shard.
        shared: every replica of the stages keeps it (ZeRO-0), so that no mirror has to.
    """

    tensor: int
    copies: int
    numel: int
    grain: int
    stages: tuple[int, ...]
    whole: bool
    shared: bool

    @property
    def num_cells(self) -> int:
        return -(-self.numel // self.grain)

    def turns(self, at: int) -> range:
        """The turns that the `at`-th of the stages takes of this tensor's cells."""
        k = len(self.stages)
        return range(-((at - self.tensor) // k), -((at - self.tensor - self.num_cells) // k))

    def turn(self, cell: int) -> tuple[int, int]:
        """(turn, at) of a cell: see `Layout.pieces`."""
        return divmod(self.tensor + cell, len(self.stages))

    def cell(self, turn: int, at: int) -> int:
        """The inverse of `turn`."""
        return turn * len(self.stages) + at - self.tensor


def deals(space: Space, layout: Layout) -> list[Deal]:
    """Every tensor's deal, in order."""
    held_by: dict[tuple[int, ...], tuple[int, ...]] = {}
    result = []
    for number, tensor in enumerate(space.tensors):
        blocks = tensor.blocks
        if blocks not in held_by:
            held_by[blocks] = tuple(s for s, stage in enumerate(layout.stages) if stage.holds(tensor))
        stages = held_by[blocks]
        numel = tensor.numel // tensor.shards(layout.tp)
        alone = len(stages) == 1 and len(layout.stages[stages[0]].teams) == 1
        whole = alone or layout.zero == 0
        grain = numel if whole else layout.chunk
        copies = tensor.copies(layout.tp)
        result.append(Deal(number, copies, numel, grain, stages, whole, layout.zero == 0 and not alone))
    return result


class StageTensors:
    """The tensors of one stage as arrays, one entry each, in storage order."""

    def __init__(self, layout: Layout, all_deals: list[Deal], stage: int) -> None:
        self.deals = [d for d in all_deals if stage in d.stages]
        self.slot = {d.tensor: i for i, d in enumerate(self.deals)}
        self.seats: Ints = np.array(layout.stages[stage].seats)
        at = [d.stages.index(stage) for d in self.deals]
        turns = [d.turns(a) for d, a in zip(self.deals, at, strict=True)]
        ends = [d.turn(d.num_cells - 1) for d in self.deals]
        self.at = at
        self.numel: Ints = np.array([d.numel for d in self.deals], dtype=np.int64)
        self.grain: Ints = np.array([d.grain for d in self.deals], dtype=np.int64)
        self.whole = np.array([d.whole for d in self.deals], dtype=bool)
        self.shared = np.array([d.shared for d in self.deals], dtype=bool)
        self.first: Ints = np.array([t.start for t in turns], dtype=np.int64)
        self.stop: Ints = np.array([t.stop for t in turns], dtype=np.int64)
        # the turn of the last cell, which may be short, where this stage takes it
        self.last: Ints = np.array([t if a == b else -1 for (t, a), b in zip(ends, at, strict=True)], dtype=np.int64)


class Shelf:
    """What one replica of a stage owns or keeps, tensor after tensor, and where. The same for all ranks of the team.

    Attributes:
        total: elements per rank.
    """

    def __init__(self, tensors: StageTensors, replica: int, unique: bool) -> None:
        """`unique`: only what no other replica keeps, the part that a mirror stores."""
        self._tensors, self._unique = tensors, unique
        self._period = len(tensors.seats)
        mine = np.flatnonzero(tensors.seats == replica)
        self._mine: list[int] = mine.tolist()

        def owned(turns: Ints) -> Ints:
            return turns // self._period * len(mine) + np.searchsorted(mine, turns % self._period)

        short = (tensors.last >= 0) & (tensors.seats[tensors.last % self._period] == replica)
        missing = np.where(short, -tensors.numel % tensors.grain, 0)
        dealt = tensors.grain * (owned(tensors.stop) - owned(tensors.first)) - missing
        sizes = np.where(tensors.whole, tensors.numel, dealt)
        if unique:
            sizes = np.where(tensors.shared, 0, sizes)
        ends = np.cumsum(sizes)
        self.total = int(ends[-1]) if len(ends) else 0
        self._offsets: list[int] = (ends - sizes).tolist()

    def offset(self, tensor: int, cell: int) -> int:
        """Where one of its cells begins."""
        slot = self._tensors.slot[tensor]
        deal = self._tensors.deals[slot]
        if deal.whole:
            return self._offsets[slot]
        before = self._owned(deal.turn(cell)[0]) - self._owned(int(self._tensors.first[slot]))
        return self._offsets[slot] + deal.grain * before

    def cells(self) -> Iterator[tuple[Deal, int, int]]:
        """(deal, cell, offset) of all that it has, in storage order."""
        for slot, deal in enumerate(self._tensors.deals):
            for cell, offset in self._cells(slot, deal):
                yield deal, cell, offset

    def first_cell(self, tensor: int) -> int | None:
        """The first cell of a tensor that it has, None for none."""
        slot = self._tensors.slot[tensor]
        return next((cell for cell, _ in self._cells(slot, self._tensors.deals[slot])), None)

    def _cells(self, slot: int, deal: Deal) -> Iterator[tuple[int, int]]:
        offset = self._offsets[slot]
        if deal.whole:
            if not (self._unique and deal.shared):
                yield 0, offset
            return
        first, stop = (self._owned(int(turns[slot])) for turns in (self._tensors.first, self._tensors.stop))
        for n in range(first, stop):
            cycle, seat = divmod(n, len(self._mine))
            yield deal.cell(cycle * self._period + self._mine[seat], self._tensors.at[slot]), offset
            offset += deal.grain

    def _owned(self, turn: int) -> int:
        """How many of the turns before `turn` are this replica's."""
        cycles, rest = divmod(turn, self._period)
        return cycles * len(self._mine) + bisect_left(self._mine, rest)
