"""How pieces are dealt to ranks, as arithmetic: which ones a replica owns, and where each lies in its storage.

`Layout` defines ownership by walking pieces; here the same answers come in closed form. The stages that hold a tensor
take turns along its pieces and the seats of a stage take turns along the stage's, so what a team owns before any point
is a number of full cycles of the seat table plus a look-up in it. The cost goes with the tensors that a team holds,
never with pieces.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainsys.space.layout import Layout
from trainsys.space.tensor import LogicalTensor, Space, class_experts

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
        expert_class: of the teams that hold it in each stage; None: all do.
        whole: one cell per shard.
        shared: all of several teams keep it (ZeRO-0), so that no mirror has to.
    """

    tensor: int
    copies: int
    numel: int
    grain: int
    stages: tuple[int, ...]
    expert_class: int | None
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


class Deals:
    """The deals of a layout's tensors, made when asked for: a rank needs few of a large model's."""

    def __init__(self, space: Space, layout: Layout) -> None:
        self.space, self.layout = space, layout
        self._made: dict[int, Deal] = {}
        self._kinds: dict[tuple[object, ...], tuple[int, int, int, tuple[int, ...], int | None, bool, bool]] = {}
        self._ep = layout.ep

    def __getitem__(self, number: int) -> Deal:
        if number not in self._made:
            self._made[number] = self._make(number)
        return self._made[number]

    def __iter__(self) -> Iterator[Deal]:
        return (self[number] for number in range(len(self.space.tensors)))

    def of_team(self, stage: int, expert_class: int | None) -> list[Deal]:
        """Those of a team of a stage, in order; with None for a class, of all teams together."""
        by_block, experts, ep = self.space.by_block, self.space.num_experts, self._ep
        numbers: set[int] = set()
        for first, stop in self.layout.stages[stage].spans:
            for block in range(first, stop):
                numbers.update(by_block.get((block, None), ()))
                count, own = experts.get(block, 0), range(experts.get(block, 0))
                if expert_class is not None:
                    own = class_experts(count, ep, expert_class)
                for expert in own:
                    numbers.update(by_block.get((block, expert), ()))
        return [self[n] for n in sorted(numbers)]

    def _make(self, number: int) -> Deal:
        tensor = self.space.tensors[number]
        expert_class = tensor.expert_class(self._ep) if self._ep > 1 else None
        stages = self.layout.stages_of(tensor)
        kind = (tensor.shape, tensor.split, tensor.max_shards, tensor.cuts, stages, expert_class)
        if kind not in self._kinds:
            self._kinds[kind] = self._deal_of(tensor, stages, expert_class)
        return Deal(number, *self._kinds[kind])

    def _deal_of(
        self, tensor: LogicalTensor, stages: tuple[int, ...], expert_class: int | None
    ) -> tuple[int, int, int, tuple[int, ...], int | None, bool, bool]:
        """All of a deal but the tensor's number."""
        layout = self.layout
        numel = tensor.numel // tensor.shards(layout.tp)
        alone = len(stages) == 1 and len(layout.stages[stages[0]].members(expert_class)) == 1
        whole = alone or layout.zero == 0
        grain = numel if whole else layout.chunk
        return tensor.copies(layout.tp), numel, grain, stages, expert_class, whole, layout.zero == 0 and not alone


class TeamTensors:
    """The tensors of the teams of a stage that hold the same, as arrays, one entry each, in storage order."""

    def __init__(self, layout: Layout, deals: Deals, stage: int, expert_class: int) -> None:
        self.deals = deals.of_team(stage, expert_class)
        self.slot = {d.tensor: i for i, d in enumerate(self.deals)}
        own = layout.stages[stage]
        tables = [own.seats_of(None), own.seats_of(expert_class)]
        self.seats: list[Ints] = [np.array(t) for t in tables]  # of what all teams hold, and of the class's experts
        self.table: list[int] = [int(d.expert_class is not None) for d in self.deals]
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


class Seating:
    """One team's places in a seat table."""

    def __init__(self, seats: Ints, team: int) -> None:
        self.seats, self.team, self.period = seats, team, len(seats)
        self.mine: list[int] = np.flatnonzero(seats == team).tolist()

    def owned(self, turns: Ints) -> Ints:
        """How many of the turns before each of `turns` are the team's."""
        return turns // self.period * len(self.mine) + np.searchsorted(self.mine, turns % self.period)

    def owned_before(self, turn: int) -> int:
        """The same for one turn."""
        cycles, rest = divmod(turn, self.period)
        return cycles * len(self.mine) + bisect_left(self.mine, rest)

    def sizes(self, tensors: TeamTensors) -> Ints:
        """Elements that the team owns of each tensor, if all of them went by this table."""
        short = (tensors.last >= 0) & (self.seats[tensors.last % self.period] == self.team)
        missing = np.where(short, -tensors.numel % tensors.grain, 0)
        return tensors.grain * (self.owned(tensors.stop) - self.owned(tensors.first)) - missing


class Shelf:
    """What one team of a stage owns or keeps, tensor after tensor, and where. The same for all of its ranks.

    Attributes:
        total: elements per rank.
    """

    def __init__(self, tensors: TeamTensors, team: int, unique: bool) -> None:
        """`unique`: only what no other team keeps, the part that a mirror stores."""
        self._tensors, self._unique = tensors, unique
        self._seatings = [Seating(seats, team) for seats in tensors.seats]
        dealt = np.where(np.array(tensors.table, dtype=bool), *(s.sizes(tensors) for s in reversed(self._seatings)))
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
        seating = self._seating(slot)
        before = seating.owned_before(deal.turn(cell)[0]) - seating.owned_before(int(self._tensors.first[slot]))
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
        seating = self._seating(slot)
        first, stop = (seating.owned_before(int(t[slot])) for t in (self._tensors.first, self._tensors.stop))
        for n in range(first, stop):
            cycle, seat = divmod(n, len(seating.mine))
            yield deal.cell(cycle * seating.period + seating.mine[seat], self._tensors.at[slot]), offset
            offset += deal.grain

    def _seating(self, slot: int) -> Seating:
        return self._seatings[self._tensors.table[slot]]
