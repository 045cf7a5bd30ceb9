"""An index of one layout: which ranks hold a box, and where in their storage, each answer by arithmetic.

Nothing is enumerated but the cells of the rank that asks. What a team of a stage keeps is summed once per team
touched, the living holders once per group of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainsys.space.box import Box
from trainsys.space.deal import Deal, Deals, Kind, Shelf, TeamTensors
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import Place, piece_places
from trainsys.space.tensor import LogicalTensor, Space

Copy = tuple[int, int]  # (rank, ward): the rank stores what is the ward's; its own, or as a mirror

_NONE, _ALL, _TURNS = 0, 1, 2  # of the tensors of a kind that a peer may keep; in turns: its ward is not their only one


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
        self._shelves: dict[tuple[int, int, tuple[int, ...]], Shelf] = {}
        self._whose: dict[Copy, Shelf] = {}
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
        return self._shelf(ward, rank), 0 if ward == rank else self._base(rank)[ward]

    def numel(self, rank: int) -> int:
        """Elements that the rank stores."""
        return sum(self._shelf(ward, rank).total for ward in (rank, *self.layout.wards_of(rank)))

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
            bases, at = {}, 0
            for ward in (rank, *self.layout.wards_of(rank)):
                bases[ward] = at
                at += self._shelf(ward, rank).total
            self._bases[rank] = bases
        return self._bases[rank]

    def _shelf(self, ward: int, rank: int) -> Shelf:
        """What `rank` has of the cells of `ward`: itself, or one whose peer it is."""
        if (rank, ward) not in self._whose:
            self._whose[rank, ward] = self._made_shelf(ward, rank)
        return self._whose[rank, ward]

    def _made_shelf(self, ward: int, rank: int) -> Shelf:
        stage, team, _ = self.layout.where(ward)
        tensors = self._tensors(stage, team)
        kept = (_ALL,) * len(tensors.kinds) if ward == rank or self.layout.zero else self._kept(tensors, ward, rank)
        if _TURNS not in kept and tensors.whole.all():  # every team like it has the same
            team = self._first(stage, team)
        key = (stage, team, kept)
        if key not in self._shelves:
            self._shelves[key] = Shelf(tensors, team, self._mask(tensors, team, kept))
        return self._shelves[key]

    def _kept(self, tensors: TeamTensors, ward: int, peer: int) -> tuple[int, ...]:
        """Which tensors of each kind `peer` keeps for `ward`."""
        kept = []
        for kind in tensors.kinds:
            keeps = kind.shared <= self.layout.tolerates
            if keeps and kind.shared > 1:
                teams = [self.layout.stages[s].teams[i] for s, i in self.deals.holding(kind)]
                keeps = peer in self.layout.peers_for(ward, teams)
            kept.append((_ALL if kind.shared == 1 else _TURNS) if keeps else _NONE)
        return tuple(kept)

    def _mask(self, tensors: TeamTensors, team: int, kept: tuple[int, ...]) -> NDArray[np.bool_] | None:
        """The same of each tensor."""
        if all(how == _ALL for how in kept):
            return None
        turns = [self.deals.holding(k).index((tensors.stage, team)) if k.shared > 1 else 0 for k in tensors.kinds]
        how, turn, among = (np.array(v)[tensors.kind_of] for v in (kept, turns, [k.shared for k in tensors.kinds]))
        mask: NDArray[np.bool_] = (how == _ALL) | ((how == _TURNS) & (tensors.numbers % among == turn))
        return mask

    def _tensors(self, stage: int, team: int) -> TeamTensors:
        kind = (stage, self.layout.stages[stage].classes[team])
        if kind not in self._teams:
            self._teams[kind] = TeamTensors(self.layout, self.deals, *kind)
        return self._teams[kind]

    def _first(self, stage: int, team: int) -> int:
        own = self.layout.stages[stage]
        return own.members(own.classes[team])[0]

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
        if kind.shared > 1:
            turn = deal.tensor % kind.shared if kind.shared <= self.layout.tolerates else 0
            at, seat = -1, turn
        else:
            turn, at = deal.turn(cell)
            seats = self.layout.stages[kind.stages[at]].seats_of(kind.expert_class)
            seat = turn % len(seats)
        key = (kind, shard - shard % kind.copies, at, seat)
        if key not in self._holders:
            owner = None if at < 0 else (kind.stages[at], seats[seat])
            self._holders[key] = self._holding(kind, key[1], owner, seat)
        return self._holders[key]

    def _holding(self, kind: Kind, first: int, owner: tuple[int, int] | None, turn: int) -> Holders:
        """Who keeps the cells of the shards from `first` on of one team of a stage; None: of all teams, alike.

        Args:
            turn: among all teams, of the one whose peers keep them, too, where there should be more holders.
        """
        shards = (first, kind.copies)
        key = (kind.stages, kind.expert_class, turn, *shards) if owner is None else (owner, *shards)
        if key not in self._groups:
            owning = self.deals.holding(kind) if owner is None else [owner]
            teams = [self.layout.stages[s].teams[i] for s, i in owning]
            copies = [(rank, rank) for team in teams for rank in team[first : first + kind.copies]]
            guards = teams[0 if owner else turn][first : first + kind.copies]
            copies += [(peer, rank) for rank in guards for peer in self.layout.peers_for(rank, teams)]
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
