"""Layouts: where each part of the space lives. Plain data, computable on a laptop.

A layout is stages → replicas → teams. A *team* is the ``tp`` ranks that together hold one replica of one stage; stages
may have different numbers of replicas and layers (*ragged*). Ownership of optimizer state is per *piece*: one chunk of
the row-major order of one tensor's tp shard. Pieces do not depend on dp or pp, so gradient norms, hashes and ZeRO
ownership keep their meaning when ranks come and go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from trainsys.space.tensor import LogicalTensor, Space

Team = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Piece:
    """Elements ``[start, stop)`` of the row-major shard that tp rank `shard` holds of tensor number `tensor`.

    What several tp ranks hold is a piece of each: every copy is owned, mirrored and updated by itself, to equal bits.
    Where each element counts once (norm, census, checkpoint), `LogicalTensor.first_copy` stands for all.
    """

    tensor: int
    shard: int
    start: int
    stop: int

    @property
    def numel(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Stage:
    """Model blocks ``[first, stop)`` (embedding = -1, head = num_layers), its replicas and their seats."""

    first: int
    stop: int
    teams: tuple[Team, ...]
    seats: tuple[int, ...]

    def holds(self, tensor: LogicalTensor) -> bool:
        return any(self.first <= b < self.stop for b in tensor.blocks)


@dataclass(frozen=True)
class Layout:
    """Where every piece lives.

    Attributes:
        stages: in pipeline order.
        tp: tensor-parallel degree, the size of every team.
        zero: 0 keeps a piece's optimizer state on every replica, 1 on its owner only.
        chunk: elements per piece, fixed for a run.
        mirrors: (rank, peer): the peer also keeps those pieces of rank that nobody else holds.
    """

    stages: tuple[Stage, ...]
    tp: int
    zero: int
    chunk: int
    mirrors: tuple[tuple[int, int], ...] = ()

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(r for s in self.stages for team in s.teams for r in team))

    @cached_property
    def _seat_of(self) -> dict[int, tuple[int, int, int]]:
        return {
            rank: (s, replica, t)
            for s, stage in enumerate(self.stages)
            for replica, team in enumerate(stage.teams)
            for t, rank in enumerate(team)
        }

    @cached_property
    def mirror_of(self) -> dict[int, int]:
        return dict(self.mirrors)

    @cached_property
    def wards_of(self) -> dict[int, list[int]]:
        """The ranks that each peer mirrors, in the order in which it stores them."""
        wards: dict[int, list[int]] = {}
        for rank, peer in sorted(self.mirrors):
            wards.setdefault(peer, []).append(rank)
        return wards

    def where(self, rank: int) -> tuple[int, int, int]:
        """(stage, replica, tp index) of a rank."""
        return self._seat_of[rank]

    def __contains__(self, rank: int) -> bool:
        return rank in self._seat_of

    @property
    def pp(self) -> int:
        return len(self.stages)

    @property
    def replicas(self) -> tuple[int, ...]:
        return tuple(len(s.teams) for s in self.stages)

    @property
    def uniform(self) -> bool:
        return len(set(self.replicas)) == 1

    # -- ownership -----------------------------------------------------------------------------------------------

    def teams_of(self, tensor: LogicalTensor) -> tuple[Team, ...]:
        """Every team that computes with `tensor` (both ends of the pipeline for a tied embedding)."""
        return tuple(team for s in self.stages if s.holds(tensor) for team in s.teams)

    def pieces(self, tensor: LogicalTensor, ordinal: int, shard: int) -> Iterator[tuple[Piece, Team]]:
        """The pieces of one tp shard with the team that owns each.

        The stages that hold the tensor take turns, and within a stage its seats do: an edit of one stage's seats
        leaves the pieces of the others where they are.
        """
        numel = tensor.numel // tensor.shards(self.tp)
        stages = [s for s in self.stages if s.holds(tensor)]
        for i, start in enumerate(range(0, numel, self.chunk)):
            turn, at = divmod(ordinal + i, len(stages))
            stage = stages[at]
            owner = stage.teams[stage.seats[turn % len(stage.seats)]]
            yield Piece(ordinal, shard, start, min(start + self.chunk, numel)), owner

    def owned(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """Pieces whose gradients this rank sums and whose state it writes to checkpoints."""
        return tuple(p for p, team in self._touched(space, rank) if rank in team)

    def held(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """Pieces whose optimizer state this rank keeps to compute with: all of its stage under ZeRO-0."""
        if self.zero == 0:
            return tuple(p for p, _ in self._touched(space, rank))
        return self.owned(space, rank)

    def mirrored(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """Pieces kept only so that the death of their single holder loses nothing."""
        return tuple(p for ward in self.wards_of.get(rank, ()) for p in self.unique(space, ward))

    def unique(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """Held pieces that no other rank holds."""
        if self.zero == 0:
            return tuple(p for p in self.held(space, rank) if len(self.teams_of(space.tensors[p.tensor])) == 1)
        return self.owned(space, rank)

    def storage(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """The pieces of the rank's flat state buffers, in order: held ones, then mirrored ones."""
        return self.held(space, rank) + self.mirrored(space, rank)

    def _touched(self, space: Space, rank: int) -> Iterator[tuple[Piece, Team]]:
        stage, _, shard = self.where(rank)
        for ordinal, tensor in enumerate(space.tensors):
            if self.stages[stage].holds(tensor):
                yield from self.pieces(tensor, ordinal, shard)

    def holders(self, tensor: LogicalTensor, shard: int, owner: Team) -> tuple[int, ...]:
        """Every rank whose storage has the pieces of `shard` owned by team `owner`, the owner first."""
        first = owner[shard]
        teams = self.teams_of(tensor)
        if self.zero == 0 and len(teams) > 1:
            return (first, *(team[shard] for team in teams if team != owner))
        mirror = self.mirror_of.get(first)
        return (first,) if mirror is None else (first, mirror)

    # -- as text -------------------------------------------------------------------------------------------------

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Transformer layers per stage."""
        return tuple(min(s.stop, num_layers) - max(s.first, 0) for s in self.stages)

    def __str__(self) -> str:
        dp = f"dp{self.replicas[0]}" if self.uniform else "dp" + "+".join(map(str, self.replicas))
        return f"{dp}·tp{self.tp}·pp{self.pp} zero{self.zero}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "stages": [
                {"first": s.first, "stop": s.stop, "teams": [list(t) for t in s.teams], "seats": list(s.seats)}
                for s in self.stages
            ],
            "tp": self.tp,
            "zero": self.zero,
            "chunk": self.chunk,
            "mirrors": [list(m) for m in self.mirrors],
        }

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Layout:
        stages = tuple(
            Stage(s["first"], s["stop"], tuple(tuple(t) for t in s["teams"]), tuple(s["seats"])) for s in d["stages"]
        )
        return Layout(stages, d["tp"], d["zero"], d["chunk"], tuple((a, b) for a, b in d["mirrors"]))
