"""An index of one layout: which ranks hold a box, and where in their storage, each answer by arithmetic.

Nothing is enumerated but the cells of the rank that asks. What a team of a stage keeps is summed once per team
touched, the living holders once per group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple

from trainsys.space.box import Box
from trainsys.space.deal import Deal, Deals, Kind, Shelf, TeamTensors
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import Place, piece_places
from trainsys.space.tensor import LogicalTensor, Space

Copy = tuple[int, int]  # (rank, ward): the rank stores what is the ward's; its own, or as a mirror


class Holders:
    """The living ranks that keep the same cells, and whose copy each of them has."""

    def __init__(self, copies: list[Copy], node_of: Callable[[int], int]) -> None:
        self.copies = copies
        self.ward: dict[int, int] = {}  # rank -> the ward whose copy it reads from
        for rank, ward in copies:
            self.ward.setdefault(rank, ward)
        self.ranks = sorted(self.ward)
        self._node_of = node_of

    @cached_property
    def by_node(self) -> dict[int, list[int]]:
        """The ranks of each node, in order."""
        nodes: dict[int, list[int]] = {}
        for rank in self.ranks:
            nodes.setdefault(self._node_of(rank), []).append(rank)
        return nodes

    @cached_property
    def copies_by_node(self) -> dict[int, list[Copy]]:
        nodes: dict[int, list[Copy]] = {}
        for rank, ward in self.copies:
            nodes.setdefault(self._node_of(rank), []).append((rank, ward))
        return nodes

    def near(self, node: int) -> list[int]:
        """Who serves a rank of `node`: those on it, or else everybody."""
        return self.by_node.get(node, self.ranks)


class Found(NamedTuple):
    """A part of the box that was asked for.

    Attributes:
        box: the part.
        shard: that has it, and which of its cells.
        run: the run of the cell that contains the part; its offset counts from the cell's begin.
    """

    box: Box
    shard: int
    cell: int
    run: Place


class Index:
    """Answers "which ranks hold this box, and where" for one layout.

    Args:
        node_of: node of a rank.
        alive: ranks that count as holders; None: all of the layout's.
    """

    def __init__(
        self, space: Space, layout: Layout, node_of: Callable[[int], int], alive: Collection[int] | None = None
    ) -> None:
        self.space, self.layout = space, layout
        self.deals = Deals(space, layout)
        self._node_of, self._alive = node_of, alive
        self._teams: dict[tuple[int, int], TeamTensors] = {}  # by stage and class of experts
        self._shelves: dict[tuple[int, int, bool], Shelf] = {}
        self._bases: dict[int, dict[int, int]] = {}
        self._holders: dict[tuple[Kind, int, int, int], Holders] = {}
        self._groups: dict[tuple[object, ...], Holders] = {}
        self._runs: dict[tuple[Kind, int, int], list[Place]] = {}

    # -- one rank's storage --------------------------------------------------------------------------------------

    def stored(self, rank: int) -> Iterator[tuple[int, Deal, int, int]]:
        """(ward, deal, cell, offset) of the rank's storage, in order."""
        for ward in self._base(rank):
            shelf, base = self.shelf(rank, ward)
            for deal, cell, offset in shelf.cells():
                yield ward, deal, cell, base + offset

    def offset(self, rank: int, ward: int, tensor: int, cell: int) -> int:
        """Where in the storage of `rank` a cell of `ward` begins."""
        shelf, base = self.shelf(rank, ward)
        return base + shelf.offset(tensor, cell)

    def shelf(self, rank: int, ward: int) -> tuple[Shelf, int]:
        """How the cells of `ward` lie in the storage of `rank`, and from where on."""
        return self._shelf(ward, ward != rank), 0 if ward == rank else self._base(rank)[ward]

    def numel(self, rank: int) -> int:
        """Elements that the rank stores."""
        wards = self.layout.wards_of(rank)
        return self._shelf(rank, False).total + sum(self._shelf(ward, True).total for ward in wards)

    def runs(self, deal: Deal, shard: int, cell: int) -> list[Place]:
        """The boxes of a cell, at offsets from its begin: the same for all tensors of a kind."""
        key = (deal.kind, shard, cell)
        if key not in self._runs:
            start = cell * deal.grain
            piece = Piece(deal.tensor, shard, start, min(start + deal.grain, deal.numel))
            self._runs[key] = piece_places(self.space.tensors[deal.tensor], self.layout.tp, piece, 0)
        return self._runs[key]

    def _base(self, rank: int) -> dict[int, int]:
        """Whose cells the rank stores, itself first, and where each one's begin."""
        if rank not in self._bases:
            bases, at = {rank: 0}, self._shelf(rank, False).total
            for ward in self.layout.wards_of(rank):
                bases[ward] = at
                at += self._shelf(ward, True).total
            self._bases[rank] = bases
        return self._bases[rank]

    def _shelf(self, rank: int, unique: bool) -> Shelf:
        stage, team, _ = self.layout.where(rank)
        key = (stage, team, unique)
        if key not in self._shelves:
            self._shelves[key] = self._made_shelf(stage, team, unique)
        return self._shelves[key]

    def _made_shelf(self, stage: int, team: int, unique: bool) -> Shelf:
        """Where all that a team keeps is whole, every team like it has the same."""
        own = self.layout.stages[stage]
        kind = (stage, own.classes[team])
        if kind not in self._teams:
            self._teams[kind] = TeamTensors(self.layout, self.deals, *kind)
        first = own.members(own.classes[team])[0]
        if team != first and self._teams[kind].whole.all():
            return self._shelf(own.teams[first][0], unique)
        return Shelf(self._teams[kind], team, unique)

    # -- everybody's ---------------------------------------------------------------------------------------------

    def find(self, deal: Deal, box: Box) -> Iterator[Found]:
        """Cut `box` at the borders of the layout's cells: the same for all tensors of a kind."""
        logical, tp = self.space.tensors[deal.tensor], self.layout.tp
        for shard in self._shards(logical, box):
            part = box.intersect(logical.local_box(tp, shard))
            assert part is not None
            for cell in range(1) if deal.kind.whole else self._cells(deal, shard, part):
                for run in self.runs(deal, shard, cell):
                    common = part.intersect(run.box)
                    if common is not None:
                        yield Found(common, shard, cell, run)

    def holders(self, deal: Deal, shard: int, cell: int) -> Holders:
        """Who keeps a cell: any rank with any of its equal shards."""
        kind = deal.kind
        turn, at = (0, 0) if kind.shared else deal.turn(cell)
        seats = self.layout.stages[kind.stages[at]].seats_of(kind.expert_class)
        seat = 0 if kind.shared else turn % len(seats)
        key = (kind, shard - shard % kind.copies, at, seat)
        if key not in self._holders:
            self._holders[key] = self._holding(kind, key[1], None if kind.shared else (kind.stages[at], seats[seat]))
        return self._holders[key]

    def _holding(self, kind: Kind, first: int, owner: tuple[int, int] | None) -> Holders:
        """Who keeps the cells of the shards from `first` on of one team of a stage; None: of all teams, alike."""
        key = (kind.stages, kind.expert_class, first, kind.copies) if owner is None else (owner, first, kind.copies)
        if key not in self._groups:
            owning = [(s, i) for s in kind.stages for i in self.layout.stages[s].members(kind.expert_class)]
            teams = [self.layout.stages[s].teams[i] for s, i in ([owner] if owner else owning)]
            owners = [rank for team in teams for rank in team[first : first + kind.copies]]
            copies = [(rank, rank) for rank in owners]
            if owner is not None:
                peers = self.layout.mirror_of
                copies += [(peers[rank], rank) for rank in owners if rank in peers]
            if self._alive is not None:
                copies = [(rank, ward) for rank, ward in copies if rank in self._alive]
            self._groups[key] = Holders(copies, self._node_of)
        return self._groups[key]

    def _shards(self, logical: LogicalTensor, box: Box) -> range:
        """The shards that `box` touches, each by the first of the tp ranks that hold it."""
        tp = self.layout.tp
        if logical.split is None:
            return range(1)
        size, copies = logical.shape[logical.split] // logical.shards(tp), logical.copies(tp)
        first, last = box.start[logical.split] // size, (box.stop[logical.split] - 1) // size
        return range(first * copies, last * copies + 1, copies)

    def _cells(self, deal: Deal, shard: int, part: Box) -> range:
        """The cells that `part` of a shard may touch, from the flat index of its first and last element."""
        outer = self.space.tensors[deal.tensor].local_box(self.layout.tp, shard)
        last = tuple(b - 1 for b in part.stop)
        return range(flat_index(outer, part.start) // deal.grain, flat_index(outer, last) // deal.grain + 1)


def flat_index(outer: Box, at: tuple[int, ...]) -> int:
    """Row-major number of a coordinate within a box."""
    shape = outer.shape
    return sum((x - o) * prod(shape[d + 1 :]) for d, (x, o) in enumerate(zip(at, outer.start, strict=True)))
