"""A layout resolved to its grid: stages of layers, replicas of each stage, cp teams per replica, tp ranks per team."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from trainsys.config import ModelConfig, ParallelConfig
from trainsys.models.geometry import split_layers
from trainsys.space.runs import host_of, is_folded, runs_of
from trainsys.space.tensor import EMBED
from trainsys.space.vocabulary import Span, stage_vocabulary


@dataclass(frozen=True)
class Stages:
    """Who is where. A team is tp ranks that hold a stage, under cp one of several of a replica; `team` numbers them in
    placement order.

    Attributes:
        runs: transformer layers of each run, in the order of the model; without vp, of each stage.
        replicas: of each stage.
        tp: ranks of a team; rank = team · tp + place in the team.
        ep: teams that share out their stage's experts; it divides the teams of each.
        cp: teams of a replica.
        folded: the runs lie in a V (space/runs.py).
        vocabulary: blocks of each stage's parts of the vocabulary (space/vocabulary.py); empty: it is not in parts.
    """

    runs: tuple[int, ...]
    replicas: tuple[int, ...]
    tp: int
    ep: int = 1
    cp: int = 1
    folded: bool = False
    vocabulary: tuple[tuple[Span, ...], ...] = ()

    @classmethod
    def of(cls, model: ModelConfig, parallel: ParallelConfig) -> Stages:
        """The grid that `parallel` names; its ragged fields win over ``dp`` and an even split."""
        runs = parallel.stage_layers or split_layers(model.num_layers, parallel.pp * parallel.vp)
        replicas = parallel.stage_replicas or (parallel.dp,) * parallel.pp
        assert len(runs) == len(replicas) * parallel.vp, (runs, replicas)
        vocabulary: tuple[tuple[Span, ...], ...] = ()
        if parallel.vocabulary != "ends":
            stages = range(len(replicas))
            vocabulary = tuple(stage_vocabulary(sum(runs), model.vocab_parts, len(replicas), s) for s in stages)
        return cls(tuple(runs), tuple(replicas), parallel.tp, parallel.ep, parallel.cp, is_folded(parallel), vocabulary)

    @property
    def count(self) -> int:
        return len(self.replicas)

    @property
    def vp(self) -> int:
        return len(self.runs) // self.count

    @property
    def layers(self) -> tuple[int, ...]:
        """Transformer layers of each stage."""
        return tuple(sum(self.runs[run] for run in self.own(stage)) for stage in range(self.count))

    def own(self, stage: int) -> Sequence[int]:
        """The numbers of the runs of `stage`."""
        return runs_of(stage, self.count, self.vp, True) if self.folded else range(stage, len(self.runs), self.count)

    def host(self, run: int) -> int:
        """The stage that has `run`."""
        return host_of(run, self.count, self.folded)

    @property
    def head(self) -> int:
        """The stage that has the head."""
        return self.host(len(self.runs) - 1)

    def total(self, per_run: Sequence[float], stage: int) -> float:
        """The sum over the runs of `stage`."""
        return sum(per_run[run] for run in self.own(stage))

    @property
    def num_teams(self) -> int:
        return sum(self.replicas) * self.cp

    @property
    def num_ranks(self) -> int:
        return self.num_teams * self.tp

    @property
    def even(self) -> bool:
        """Every stage has equally many replicas."""
        return len(set(self.replicas)) == 1

    def run_blocks(self, run: int) -> range:
        """Model blocks of a run: its layers, with the embedding on the first and the head on the last."""
        first = sum(self.runs[:run])
        last = first + self.runs[run]
        return range(EMBED if run == 0 else first, last + (run == len(self.runs) - 1))

    def blocks(self, stage: int) -> tuple[int, ...]:
        """Model blocks of all runs of `stage`."""
        own = tuple(b for run in self.own(stage) for b in self.run_blocks(run))
        return own + self.parts_with(min(self.own(stage)))

    def parts_with(self, run: int) -> tuple[int, ...]:
        """The blocks of the vocabulary's parts on the stage of `run`, which count with its first run."""
        if not self.vocabulary or run >= self.count:
            return ()
        return tuple(b for first, stop in self.vocabulary[run] for b in range(first, stop))

    def copies(self, stage: int) -> int:
        """Teams that hold `stage`."""
        return self.replicas[stage] * self.cp

    def team(self, stage: int, replica: int, cp_index: int = 0) -> int:
        """Number of a team in placement order: one replica of every stage after the other (space/build.py)."""
        before = sum(min(count, replica) for count in self.replicas)
        return (before + sum(count > replica for count in self.replicas[:stage])) * self.cp + cp_index

    def ranks_of(self, team: int) -> range:
        """The tp ranks of `team`."""
        return range(team * self.tp, (team + 1) * self.tp)

    def data_group(self, stage: int) -> tuple[int, ...]:
        """The ranks that average the gradients of one tp shard of `stage` (the first shard; the others are alike)."""
        return tuple(rank for group in self.sequence_groups(stage) for rank in group)

    def sequence_groups(self, stage: int) -> list[tuple[int, ...]]:
        """The ranks of each replica that share a sequence (the first of each team; the others are alike)."""
        return [
            tuple(self.team(stage, replica, index) * self.tp for index in range(self.cp))
            for replica in range(self.replicas[stage])
        ]

    def expert_group(self, stage: int) -> tuple[int, ...]:
        """Those that average the gradients of the first class's experts: every ep-th of `data_group`."""
        return self.data_group(stage)[:: self.ep]

    def exchange_groups(self, stage: int) -> list[tuple[int, ...]]:
        """The ranks that send each other tokens (the first of each team; the others are alike)."""
        ranks = self.data_group(stage)
        return [ranks[i : i + self.ep] for i in range(0, len(ranks), self.ep)]


def notation(parallel: ParallelConfig, microbatch_size: int = 0) -> str:
    """A layout in one token group: ``dp2·tp1·pp2 zero1 1f1b``; ragged: ``dp[2,1]·tp1·pp2[3,3] 1f1b``.

    More than two equal numbers in a row are counted: ``pp8[1,2×6,1]``. A microbatch size is the last word, ``mb4``.
    """
    replicas, layers = parallel.stage_replicas, parallel.stage_layers
    dp = f"dp[{_list(replicas)}]" if replicas else f"dp{parallel.dp}"
    shares = f" shares[{_list(parallel.replica_shares)}]" if parallel.replica_shares else ""
    pp = f"pp{parallel.pp}[{_list(layers)}]" if layers else f"pp{parallel.pp}"
    more = "".join(f"·{axis}{getattr(parallel, axis)}" for axis in ("cp", "ep", "vp") if getattr(parallel, axis) > 1)
    words = [f"{dp}·tp{parallel.tp}·{pp}{more}{shares}"]
    words += [f"zero{parallel.zero}"] if parallel.zero else []
    words += ["sp"] if parallel.sequence_parallel else []
    words += [parallel.schedule] if parallel.pp > 1 else []
    words += [parallel.vocabulary] if parallel.vocabulary != "ends" else []
    words += ["placed"] if parallel.devices else []
    words += {"none": [], "full": ["recompute"]}.get(parallel.recompute, [f"recompute-{parallel.recompute}"])
    words += {"none": [], "activations": ["offload"]}.get(parallel.offload, [f"offload-{parallel.offload}"])
    words += [f"mb{microbatch_size}"] if microbatch_size else []
    return " ".join(words)


def _list(numbers: Sequence[int]) -> str:
    """``1,2×6,1``."""
    parts: list[str] = []
    for number, same in groupby(numbers):
        count = len(list(same))
        parts += [f"{number}×{count}"] if count > 2 else [str(number)] * count
    return ",".join(parts)
