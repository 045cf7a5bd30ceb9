"""How pieces are dealt to ranks, as arithmetic: which ones a replica owns, and where each lies in its storage.

`Layout` defines ownership by walking pieces; here the same answers come in closed form. The stages that hold a tensor
take turns along its pieces and the seats of a stage take turns along the stage's, so what a team owns before any point
is a number of full cycles of the seat table plus a look-up in it. The cost goes with the tensors that a team holds,
never with pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainsys.space.layout import Layout
from trainsys.space.tensor import LogicalTensor, Space, class_experts

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """How all tensors are dealt that have one form and the same holders: in cells of `grain` elements per shard.

    A tensor that every one of its holders has in full, end to end, is a single cell; else a cell is a piece.

    Attributes:
        copies: neighbouring tp ranks with equal shards: 1 where tp cuts it for each, tp where it is replicated.
        numel: elements of one shard.
        grain: elements of a cell; the last of a shard may be smaller.
        stages: those that hold it, and take its cells in turn.
        expert_class: of the teams that hold it in each stage; None: all do.
        whole: one cell per shard.
        shared: so many teams keep it alike (ZeRO-0): mirrors have to only where there should be more; else 1.
    """

    copies: int
    numel: int
    grain: int
    stages: tuple[int, ...]
    expert_class: int | None
    whole: bool
    shared: int

    @property
    def num_cells(self) -> int:
        return -(-self.numel // self.grain)

    def cut_as(self, other: Kind) -> bool:
        """Whether cells and shards of the same tensors are the same in `other`, whoever has them."""
        return (self.copies, self.numel, self.grain) == (other.copies, other.numel, other.grain)


class Deal(NamedTuple):
    """How one tensor is dealt: as its kind is, beginning with the turn that its number in the space says."""

    tensor: int
    kind: Kind

    @property
    def numel(self) -> int:
        return self.kind.numel

    @property
    def grain(self) -> int:
        return self.kind.grain

    def turn(self, cell: int) -> tuple[int, int]:
        """(turn, at) of a cell, which the `at`-th of the stages takes: see `Layout.pieces`."""
        return divmod(self.tensor + cell, len(self.kind.stages))

    def cell(self, turn: int, stage: int) -> int:
        """The cell that a stage takes at one of its turns."""
        stages = self.kind.stages
        return turn * len(stages) + stages.index(stage) - self.tensor


class Deals:
    """The deals of a layout's tensors, made when asked for: a rank needs few of a large model's."""

    def __init__(self, space: Space, layout: Layout) -> None:
        self.space, self.layout = space, layout
        self._kinds: dict[tuple[int, tuple[int, ...], int | None], Kind] = {}
        self._ep = layout.ep

    def __getitem__(self, number: int) -> Deal:
        tensor = self.space.tensors[number]
        expert_class = tensor.expert_class(self._ep) if self._ep > 1 else None
        key = (self.space.alike[number], self.layout.stages_of(tensor), expert_class)
        if key not in self._kinds:
            self._kinds[key] = self._kind(tensor, *key[1:])
        return Deal(number, self._kinds[key])

    def __iter__(self) -> Iterator[Deal]:
        return (self[number] for number in range(len(self.space.tensors)))

    def of_team(self, stage: int, expert_class: int | None) -> list[int]:
        """The tensors of a team of a stage, in order; with None for a class, of all teams together."""
        by_block, experts, ep = self.space.by_block, self.space.num_experts, self._ep
        numbers: set[int] = set()
        for first, stop in self.layout.stages[stage].intervals:
            for block in range(first, stop):
                numbers.update(by_block.get((block, None), ()))
                count, own = experts.get(block, 0), range(experts.get(block, 0))
                if expert_class is not None:
                    own = class_experts(count, ep, expert_class)
                for expert in own:
                    numbers.update(by_block.get((block, expert), ()))
        return sorted(numbers)

    def holding(self, kind: Kind) -> list[tuple[int, int]]:
        """(stage, team) of all that compute with a tensor of such a kind, in order."""
        return [(s, i) for s in kind.stages for i in self.layout.stages[s].members(kind.expert_class)]

    def _kind(self, tensor: LogicalTensor, stages: tuple[int, ...], expert_class: int | None) -> Kind:
        layout = self.layout
        numel = tensor.numel // tensor.shards(layout.tp)
        count = sum(len(layout.stages[s].members(expert_class)) for s in stages)
        whole = count == 1 or layout.zero == 0
        shared = count if layout.zero == 0 else 1
        return Kind(
            tensor.copies(layout.tp), numel, numel if whole else layout.chunk, stages, expert_class, whole, shared
        )


class TeamTensors:
    """The tensors of the teams of a stage that hold the same, as arrays, one entry each, in storage order.

    Ownership goes by two seat tables, that of what all teams hold and that of the class's experts. They lie end to end
    here, each with a place more for its end; a turn is so many cycles of its table and a place.

    Attributes:
        tables: the two; `table` says which one a tensor goes by.
        begins: the place at which each of them begins.
        first, stop: the turns that the stage takes of the tensor's cells, each as (cycles, place).
        last: the place of the last cell's turn.
        lacking: elements that the last cell is short of, where this stage takes it.
        kinds, kind_of: the kinds that there are, and which one each tensor is of.
    """

    def __init__(self, layout: Layout, deals: Deals, stage: int, expert_class: int) -> None:
        numbers, alike = deals.of_team(stage, expert_class), deals.space.alike
        forms = np.array([alike[n] for n in numbers], dtype=np.int64)
        _, examples, which = np.unique(forms, return_index=True, return_inverse=True)
        self.kinds = kinds = [deals[numbers[i]].kind for i in examples.tolist()]
        self.kind_of: Ints = which

        def of(values: list[int]) -> Ints:
            """A value per kind to a value per tensor."""
            return np.array(values, dtype=np.int64)[which]

        self.deals = [Deal(n, kinds[i]) for n, i in zip(numbers, which.tolist(), strict=True)]
        self.slot = {n: i for i, n in enumerate(numbers)}
        self.numel, self.grain = of([k.numel for k in kinds]), of([k.grain for k in kinds])
        self.whole = of([k.whole for k in kinds]) > 0
        own = layout.stages[stage]
        self.tables: list[Ints] = [np.array(own.seats_of(c), dtype=np.int64) for c in (None, expert_class)]
        self.begins = [0, len(self.tables[0]) + 1]
        self.table = of([k.expert_class is not None for k in kinds])
        period, begin = (np.array(v)[self.table] for v in ([len(t) for t in self.tables], self.begins))

        def split(turns: Ints) -> tuple[Ints, Ints]:
            return turns // period, turns % period + begin

        stages, at = of([len(k.stages) for k in kinds]), of([k.stages.index(stage) for k in kinds])
        self.numbers = start = np.array(numbers, dtype=np.int64)
        stop = start + of([k.num_cells for k in kinds])
        self.first, self.stop = split(-((at - start) // stages)), split(-((at - stop) // stages))
        self.last = split((stop - 1) // stages)[1]
        self.lacking: Ints = np.where((stop - 1) % stages == at, -self.numel % self.grain, 0)
        self.stage = stage


class Shelf:
    """What one team of a stage owns or keeps, tensor after tensor, and where. The same for all of its ranks.

    Attributes:
        total: elements per rank.
    """

    def __init__(self, tensors: TeamTensors, team: int, kept: NDArray[np.bool_] | None = None) -> None:
        """`kept`: of each tensor, whether it is there; None: all are."""
        self._tensors = tensors
        mine = [table == team for table in tensors.tables]
        before = np.concatenate([np.concatenate(([0], np.cumsum(own))) for own in mine])  # its seats before each place
        self._seats = [np.flatnonzero(own).tolist() for own in mine]
        per_cycle = np.array([len(seats) for seats in self._seats])[tensors.table]
        first, stop = (cycles * per_cycle + before[places] for cycles, places in (tensors.first, tensors.stop))
        missing = tensors.lacking * (before[tensors.last + 1] - before[tensors.last])
        sizes = np.where(tensors.whole, tensors.numel, tensors.grain * (stop - first) - missing)
        counts = np.where(tensors.whole, 1, stop - first)
        if kept is not None:
            sizes, counts = sizes * kept, counts * kept
        ends = np.cumsum(sizes)
        self.total = int(ends[-1]) if len(ends) else 0
        self._first, self._counts, self._offsets = first, counts, ends - sizes
        origins = np.where(tensors.whole, self._offsets, self._offsets - tensors.grain * first)
        self._origins: list[int] = origins.tolist()  # of each tensor, where its cells would begin if turns began at 0
        self._before: list[int] = before.tolist()

    def offset(self, tensor: int, cell: int) -> int:
        """Where one of its cells begins."""
        slot = self._tensors.slot[tensor]
        origin, deal = self._origins[slot], self._tensors.deals[slot]
        if deal.kind.whole:
            return origin
        table = deal.kind.expert_class is not None
        cycles, seat = divmod(deal.turn(cell)[0], len(self._tensors.tables[table]))
        owned = cycles * len(self._seats[table]) + self._before[self._tensors.begins[table] + seat]
        return origin + deal.kind.grain * owned

    def cells(self) -> Iterator[tuple[Deal, int, int]]:
        """(deal, cell, offset) of all that it has, in storage order."""
        slots = np.flatnonzero(self._counts)
        found = (slots, self._offsets[slots], self._first[slots], self._counts[slots])
        for slot, offset, first, count in zip(*(a.tolist() for a in found), strict=True):
            deal = self._tensors.deals[slot]
            for n in range(count):
                yield deal, 0 if deal.kind.whole else self._cell(deal, first + n), offset
                offset += deal.kind.grain

    def first_cell(self, tensor: int) -> int | None:
        """The first cell of a tensor that it has, None for none."""
        slot = self._tensors.slot[tensor]
        if not self._counts[slot]:
            return None
        deal = self._tensors.deals[slot]
        return 0 if deal.kind.whole else self._cell(deal, int(self._first[slot]))

    def _cell(self, deal: Deal, n: int) -> int:
        """The cell at the `n`-th of the turns that are the team's."""
        table = deal.kind.expert_class is not None
        cycles, seat = divmod(n, len(self._seats[table]))
        turn = cycles * len(self._tensors.tables[table]) + self._seats[table][seat]
        return deal.cell(turn, self._tensors.stage)
