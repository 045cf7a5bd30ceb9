"""An index of one layout: which ranks hold a box, and where in their storage, each answer by arithmetic.

Nothing is enumerated but the cells of the rank that asks. What a team of a stage keeps is summed once per team
touched, the living holders once per group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from trainsys.space.box import Box
from trainsys.space.deal import Deal, Deals, Shelf, TeamTensors
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import Place, piece_places
from trainsys.space.stage import Team
from trainsys.space.tensor import Space

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


@dataclass(frozen=True, slots=True)
class Found:
    """A part of the box that was asked for.

    Attributes:
        box: the part.
        cell: of the tensor.
        run: the run of the cell that contains the part; its offset counts from the cell's begin.
        holders: who keeps the cell.
    """

    box: Box
    cell: int
    run: Place
    holders: Holders


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
        self._holders: dict[tuple[object, ...], Holders] = {}
        self._runs: dict[tuple[int, int, int], list[Place]] = {}

    # -- one rank's storage --------------------------------------------------------------------------------------

    def stored(self, rank: int) -> Iterator[tuple[int, Deal, int, int]]:
        """(ward, deal, cell, offset) of the rank's storage, in order."""
        for ward, base in self._base(rank).items():
            for deal, cell, offset in self._shelf(ward, ward != rank).cells():
                yield ward, deal, cell, base + offset

    def offset(self, rank: int, ward: int, tensor: int, cell: int) -> int:
        """Where in the storage of `rank` a cell of `ward` begins."""
        return self._base(rank)[ward] + self._shelf(ward, ward != rank).offset(tensor, cell)

    def numel(self, rank: int) -> int:
        """Elements that the rank stores."""
        wards = self.layout.wards_of.get(rank, ())
        return self._shelf(rank, False).total + sum(self._shelf(ward, True).total for ward in wards)

    def runs(self, deal: Deal, shard: int, cell: int) -> list[Place]:
        """The boxes of a cell, at offsets from its begin."""
        key = (deal.tensor, shard, cell)
        if key not in self._runs:
            start = cell * deal.grain
            piece = Piece(deal.tensor, shard, start, min(start + deal.grain, deal.numel))
            self._runs[key] = piece_places(self.space.tensors[deal.tensor], self.layout.tp, piece, 0)
        return self._runs[key]

    def _base(self, rank: int) -> dict[int, int]:
        """Whose cells the rank stores, itself first, and where each one's begin."""
        if rank not in self._bases:
            bases, at = {rank: 0}, self._shelf(rank, False).total
            for ward in self.layout.wards_of.get(rank, ()):
                bases[ward] = at
                at += self._shelf(ward, True).total
            self._bases[rank] = bases
        return self._bases[rank]

    def _shelf(self, rank: int, unique: bool) -> Shelf:
        stage, team, _ = self.layout.where(rank)
        key = (stage, team, unique)
        if key not in self._shelves:
            kind = (stage, self.layout.stages[stage].classes[team])
            if kind not in self._teams:
                self._teams[kind] = TeamTensors(self.layout, self.deals, *kind)
            self._shelves[key] = Shelf(self._teams[kind], team, unique)
        return self._shelves[key]

    # -- everybody's ---------------------------------------------------------------------------------------------

    def find(self, tensor: int, box: Box) -> Iterator[Found]:
        """Cut `box` at the borders of the layout's cells; each part comes with its holders."""
        logical, deal, tp = self.space.tensors[tensor], self.deals[tensor], self.layout.tp
        for shard in self._shards(tensor, box):
            part = box.intersect(logical.local_box(tp, shard))
            assert part is not None
            for cell in range(1) if deal.whole else self._cells(deal, shard, part):
                for run in self.runs(deal, shard, cell):
                    common = part.intersect(run.box)
                    if common is not None:
                        yield Found(common, cell, run, self.holders(deal, shard, cell))

    def holders(self, deal: Deal, shard: int, cell: int) -> Holders:
        """Who keeps a cell: any rank with any of its equal shards."""
        first = shard - shard % deal.copies
        key: tuple[object, ...] = (deal.stages, deal.expert_class, first, deal.copies)
        teams: tuple[Team, ...] = ()
        if not deal.shared:
            turn, at = deal.turn(cell)
            stage = self.layout.stages[deal.stages[at]]
            seats = stage.seats_of(deal.expert_class)
            team = seats[turn % len(seats)]
            key, teams = (deal.stages[at], team, first, deal.copies), (stage.teams[team],)
        if key not in self._holders:
            stages = [self.layout.stages[s] for s in deal.stages]
            teams = teams or tuple(stage.teams[i] for stage in stages for i in stage.members(deal.expert_class))
            owners = [rank for team in teams for rank in team[first : first + deal.copies]]
            copies = [(rank, rank) for rank in owners]
            if not deal.shared:
                peers = self.layout.mirror_of
                copies += [(peers[rank], rank) for rank in owners if rank in peers]
            if self._alive is not None:
                copies = [(rank, ward) for rank, ward in copies if rank in self._alive]
            self._holders[key] = Holders(copies, self._node_of)
        return self._holders[key]

    def _shards(self, tensor: int, box: Box) -> range:
        """The shards that `box` touches, each by the first of the tp ranks that hold it."""
        logical, tp = self.space.tensors[tensor], self.layout.tp
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
