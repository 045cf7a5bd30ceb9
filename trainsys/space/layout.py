"""Layouts: where each part of the space lives. Plain data, computable on a laptop.

A layout is stages → replicas → teams. A *team* is ``tp`` ranks that together hold what a stage holds; stages may have
different numbers of replicas and layers (*ragged*), and under vp several runs of layers. A replica is one team, or
under cp that many neighbouring ones, which share a sequence and hold the same. Under ep the teams of a stage fall into
classes, each with its own experts.

Ownership of optimizer state is per *piece*: one chunk of the row-major order of one tensor's tp shard. Pieces do not
depend on dp, cp, ep, vp or pp, so gradient norms, hashes and ZeRO ownership keep their meaning when ranks come and go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainsys.space.stage import Stage, Team
from trainsys.space.tensor import LogicalTensor, Space

_KNOWN = 4  # ranks whose pieces are kept: a rank asks for its own and its wards' again and again


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
class Layout:
    """Where every piece lives.

    Attributes:
        stages: in pipeline order.
        tp: tensor-parallel degree, the size of every team.
        zero: 0 keeps a piece's optimizer state on every replica, 1 and more on its owner only.
        chunk: elements per piece, fixed for a run.
        mirrors: (rank, peer), equally many for every rank, the first peer first: they keep those pieces of rank of
            which there would be too few holders; see `peers_for`.
        cp: teams of a replica, which share a sequence.
    """

    stages: tuple[Stage, ...]
    tp: int
    zero: int
    chunk: int
    mirrors: tuple[tuple[int, int], ...] = ()
    cp: int = 1

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted(r for s in self.stages for team in s.teams for r in team))

    @cached_property
    def _seat_of(self) -> dict[int, tuple[int, int, int]]:
        return {
            rank: (s, number, t)
            for s, stage in enumerate(self.stages)
            for number, team in enumerate(stage.teams)
            for t, rank in enumerate(team)
        }

    @cached_property
    def _stage_of(self) -> dict[int, int]:
        """Block -> the stage that computes it."""
        return {
            b: s for s, stage in enumerate(self.stages) for first, stop in stage.intervals for b in range(first, stop)
        }

    @cached_property
    def runs(self) -> tuple[tuple[int, tuple[int, int]], ...]:
        """(stage, blocks ``[first, stop)``) of every run of layers, in the order of the model.

        To a schedule each is a stage of its own.
        """
        spans = ((s, span) for s, stage in enumerate(self.stages) for span in stage.spans)
        return tuple(sorted(spans, key=lambda run: run[1]))

    def stages_of(self, tensor: LogicalTensor) -> tuple[int, ...]:
        """The stages that hold `tensor`, in order."""
        if not tensor.uses:
            return (self._stage_of[tensor.block],)
        return tuple(sorted({self._stage_of[block] for block in tensor.uses}))

    @cached_property
    def peers_of(self) -> dict[int, tuple[int, ...]]:
        """Rank -> its peers, in the order in which they are called upon."""
        peers: dict[int, list[int]] = {}
        for rank, peer in self.mirrors:
            peers.setdefault(rank, []).append(peer)
        return {rank: tuple(own) for rank, own in peers.items()}

    @cached_property
    def tolerates(self) -> int:
        """How many ranks may fail at once without a loss: every piece has more holders than that."""
        return len(self.mirrors) // len(self.ranks)

    def peers_for(self, rank: int, teams: Sequence[Team]) -> tuple[int, ...]:
        """The peers that keep what `rank` holds and the other `teams` hold, too: as many as are missing.

        A rank has `tolerates` peers. Of these at most as many hold a piece themselves as it has holders beside the
        rank, so those that do not are never too few.
        """
        missing = self.tolerates + 1 - len(teams)
        if missing < 1:
            return ()
        shard = self.where(rank)[2]
        holding = {team[shard] for team in teams}
        return tuple([peer for peer in self.peers_of[rank] if peer not in holding][:missing])

    def wards_of(self, peer: int) -> list[int]:
        """The ranks that `peer` mirrors, in the order in which it stores them."""
        ranks, peers = self._by_peer
        first, stop = np.searchsorted(peers, (peer, peer + 1)).tolist()
        wards: list[int] = ranks[first:stop].tolist()
        return wards

    @cached_property
    def _by_peer(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The mirrors as (ranks, peers), in order of peers, then ranks."""
        ranks, peers = np.array(self.mirrors, dtype=np.int64).reshape(-1, 2).T
        order = np.lexsort((ranks, peers))
        return ranks[order], peers[order]

    def where(self, rank: int) -> tuple[int, int, int]:
        """(stage, team, tp index) of a rank. The team's number is the replica's where cp is 1."""
        return self._seat_of[rank]

    def replica_of(self, rank: int) -> tuple[int, int]:
        """(replica, cp index) of a rank within its stage."""
        return divmod(self._seat_of[rank][1], self.cp)

    def __contains__(self, rank: int) -> bool:
        return rank in self._seat_of

    @property
    def pp(self) -> int:
        return len(self.stages)

    @property
    def vp(self) -> int:
        return len(self.stages[0].spans)

    @property
    def ep(self) -> int:
        return self.stages[0].ep

    @property
    def replicas(self) -> tuple[int, ...]:
        return tuple(len(s.teams) // self.cp for s in self.stages)

    @property
    def uniform(self) -> bool:
        return len(set(self.replicas)) == 1

    # -- ownership -----------------------------------------------------------------------------------------------

    def teams_of(self, tensor: LogicalTensor) -> tuple[Team, ...]:
        """Every team that computes with `tensor`: those of both ends for a tied embedding, of a class for an expert."""
        stages = [self.stages[s] for s in self.stages_of(tensor)]
        return tuple(stage.teams[i] for stage in stages for i in stage.members(tensor.expert_class(stage.ep)))

    def holds(self, tensor: LogicalTensor, rank: int) -> bool:
        """Whether `rank` computes with its shard of `tensor`."""
        s, team, _ = self.where(rank)
        if all(self._stage_of[block] != s for block in tensor.blocks):
            return False
        stage = self.stages[s]
        return tensor.expert_class(stage.ep) in (None, stage.classes[team])

    def pieces(self, tensor: LogicalTensor, ordinal: int, shard: int) -> Iterator[tuple[Piece, Team]]:
        """The pieces of one tp shard with the team that owns each.

        The stages that hold the tensor take turns, and within a stage its seats do: an edit of one stage's seats
        leaves the pieces of the others where they are.
        """
        numel = tensor.numel // tensor.shards(self.tp)
        stages = [self.stages[s] for s in self.stages_of(tensor)]
        for i, start in enumerate(range(0, numel, self.chunk)):
            turn, at = divmod(ordinal + i, len(stages))
            stage = stages[at]
            seats = stage.seats_of(tensor.expert_class(stage.ep))
            owner = stage.teams[seats[turn % len(seats)]]
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
        return tuple(p for ward in self.wards_of(rank) for p in self.kept_for(space, ward, rank))

    def kept_for(self, space: Space, ward: int, peer: int) -> tuple[Piece, ...]:
        """Pieces that `ward` holds and its `peer` keeps, too."""
        if self.zero:
            return self.owned(space, ward)
        kept: dict[int, bool] = {}
        for number, tensor in enumerate(space.tensors):
            if self.holds(tensor, ward):
                teams = self.teams_of(tensor)
                kept[number] = ward in guardian(teams, number) and peer in self.peers_for(ward, teams)
        return tuple(p for p in self.held(space, ward) if kept[p.tensor])

    def storage(self, space: Space, rank: int) -> tuple[Piece, ...]:
        """The pieces of the rank's flat state buffers, in order: held ones, then mirrored ones."""
        return self.held(space, rank) + self.mirrored(space, rank)

    def _touched(self, space: Space, rank: int) -> Sequence[tuple[Piece, Team]]:
        """The pieces that `rank` computes with, and the team that owns each."""
        known = self._known.get(rank)
        if known is None or known[0] is not space:
            shard = self.where(rank)[2]
            held = [(o, t) for o, t in enumerate(space.tensors) if self.holds(t, rank)]
            known = space, [owned for ordinal, t in held for owned in self.pieces(t, ordinal, shard)]
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[rank] = known
        return known[1]

    @cached_property
    def _known(self) -> dict[int, tuple[Space, Sequence[tuple[Piece, Team]]]]:
        """What `_touched` found for the ranks that were asked for last."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what was derived: a layout travels in messages."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def holders(self, tensor: LogicalTensor, ordinal: int, shard: int, owner: Team) -> tuple[int, ...]:
        """Every rank whose storage has the pieces of `shard` owned by team `owner`, the owner first, mirrors last."""
        teams = self.teams_of(tensor) if self.zero == 0 else (owner,)
        others = (team[shard] for team in teams if team != owner)
        return (owner[shard], *others, *self.peers_for(guardian(teams, ordinal)[shard], teams))

    # -- as text -------------------------------------------------------------------------------------------------

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Transformer layers per stage."""
        return tuple(sum(min(b, num_layers) - max(a, 0) for a, b in s.spans) for s in self.stages)

    def __str__(self) -> str:
        dp = f"dp{self.replicas[0]}" if self.uniform else "dp" + "+".join(map(str, self.replicas))
        more = "".join(f"·{axis}{n}" for axis, n in (("cp", self.cp), ("ep", self.ep), ("vp", self.vp)) if n > 1)
        return f"{dp}·tp{self.tp}·pp{self.pp}{more} zero{self.zero}"

    def to_dict(self) -> dict[str, Any]:
        def lists(value: Any) -> Any:
            return [lists(v) for v in value] if isinstance(value, tuple) else value

        stages = [{f.name: lists(getattr(s, f.name)) for f in fields(s)} for s in self.stages]
        return {**{f.name: lists(getattr(self, f.name)) for f in fields(self)}, "stages": stages}

    @staticmethod
    def from_dict(d: dict[str, Any]) -> Layout:
        def tuples(value: Any) -> Any:
            return tuple(tuples(v) for v in value) if isinstance(value, list) else value

        stages = tuple(Stage(**{k: tuples(v) for k, v in s.items()}) for s in d["stages"])
        return Layout(**{**{k: tuples(v) for k, v in d.items()}, "stages": stages})


def guardian(teams: Sequence[Team], ordinal: int) -> Team:
    """Of the teams that hold tensor number `ordinal` alike, the one whose peers keep it: they take turns."""
    return teams[ordinal % len(teams)]
