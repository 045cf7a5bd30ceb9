"""Which replica of each stage handles each microbatch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainsys.space.runs import host_of


@dataclass(frozen=True)
class Routes:
    """The way of every microbatch through the stages' replicas.

    Stages may have different numbers of replicas: after a failure one stage has fewer than its neighbours.

    Attributes:
        table: ``table[stage][microbatch]`` is the replica of that stage that runs that microbatch; -1: it is not there.
        paths: ``paths[microbatch]`` are the stages that it visits, in order, each once; empty: all, in order.
    """

    table: tuple[tuple[int, ...], ...]
    paths: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.table or not self.table[0]:
            raise ValueError(f"routes need at least one stage and one microbatch, got {self.table}")
        for stage, row in enumerate(self.table):
            if len(row) != self.num_microbatches:
                raise ValueError(f"routes: stage {stage} has {len(row)} microbatches, stage 0 {self.num_microbatches}")
            used = set(row) - {-1} if self.paths else set(row)
            if used != set(range(max(row) + 1)):
                raise ValueError(f"routes: stage {stage} uses replicas {sorted(used)}; number them 0, 1, 2, …")
        if self.paths:
            self._check_paths()

    def _check_paths(self) -> None:
        if len(self.paths) != self.num_microbatches:
            raise ValueError(f"routes: {len(self.paths)} paths for {self.num_microbatches} microbatches; give each one")
        for mb, path in enumerate(self.paths):
            visited = [stage for stage, row in enumerate(self.table) if row[mb] >= 0]
            if not path or sorted(path) != visited:
                raise ValueError(
                    f"routes: the path of microbatch {mb} is {list(path)} but it has replicas of stages {visited}; "
                    "list each of them once"
                )

    @classmethod
    def balanced(
        cls, num_microbatches: int, replicas: Sequence[int], vp: int = 1, folded: bool = False,
        shares: Sequence[int] = (),
    ) -> Routes:  # fmt: skip
        """Contiguous blocks of near-equal size: of R replicas, r takes [r·M//R, (r+1)·M//R); or of given sizes.

        Args:
            num_microbatches: M, of the whole step (global, not per replica).
            replicas: number of replicas of each stage.
            vp, folded: runs of layers of each stage and how they lie (space/runs.py); each is a stage of its own here.
            shares: microbatches of every replica, stage by stage; empty: nearly equal.

        Raises:
            ValueError: if a stage has more replicas than there are microbatches, or none, or shares do not add up.
        """
        for stage, count in enumerate(replicas):
            if count < 1:
                raise ValueError(f"stage {stage} has {count} replicas; every stage needs at least 1")
            if count > num_microbatches:
                raise ValueError(
                    f"stage {stage} has {count} replicas but the step has only {num_microbatches} microbatches; "
                    "lower batch.microbatch_size or raise batch.global_size"
                )
        rows = (
            _rows(num_microbatches, replicas, shares)
            if shares
            else tuple(
                tuple(r for r in range(count) for _ in range(*_block(num_microbatches, count, r))) for count in replicas
            )
        )
        count = len(replicas)
        return cls(tuple(rows[host_of(run, count, folded)] for run in range(count * vp)))

    @property
    def num_stages(self) -> int:
        return len(self.table)

    @property
    def num_microbatches(self) -> int:
        return len(self.table[0])

    @property
    def replicas(self) -> tuple[int, ...]:
        """Number of replicas of each stage; 0 where no path leads."""
        return tuple(max(row) + 1 for row in self.table)

    def microbatches(self, stage: int, replica: int) -> tuple[int, ...]:
        """Microbatches of one replica of one stage, ascending."""
        return tuple(mb for mb, r in enumerate(self.table[stage]) if r == replica)

    def path(self, microbatch: int) -> Sequence[int]:
        """The stages that `microbatch` visits, in order."""
        return self.paths[microbatch] if self.paths else range(self.num_stages)

    def before(self, stage: int, microbatch: int) -> int | None:
        """The stage that `microbatch` comes from; None at the start of its path."""
        if self.paths:
            return self._next_to(-1, stage, microbatch)
        return stage - 1 if stage > 0 else None

    def after(self, stage: int, microbatch: int) -> int | None:
        """The stage that `microbatch` goes to; None at the end of its path."""
        if self.paths:
            return self._next_to(1, stage, microbatch)
        return stage + 1 if stage < self.num_stages - 1 else None

    def _next_to(self, step: int, stage: int, microbatch: int) -> int | None:
        path = self.paths[microbatch]
        if stage not in path:
            return None
        place = path.index(stage) + step
        return path[place] if 0 <= place < len(path) else None

    def order(self) -> tuple[int, ...]:
        """The execution order that all lanes share: each lane runs its microbatches as a subsequence of it.

        Sorted by (the earliest place of the microbatch in any of its replicas' blocks, microbatch), so that a stage
        with one replica, fed by two, takes from them in turn.
        """
        place = [self.num_microbatches] * self.num_microbatches
        for row in self.table:
            seen: Counter[int] = Counter()
            for mb, replica in enumerate(row):
                if replica < 0:
                    continue
                place[mb] = min(place[mb], seen[replica])
                seen[replica] += 1
        return tuple(sorted(range(self.num_microbatches), key=lambda mb: (place[mb], mb)))


def _rows(total: int, replicas: Sequence[int], shares: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Of each stage the replica of every microbatch, by shares. Raises ValueError where these do not add up."""
    if len(shares) != sum(replicas):
        raise ValueError(
            f"parallel.replica_shares has {len(shares)} numbers but the stages have {sum(replicas)} replicas; give "
            "each one, or leave it empty"
        )
    rows, left = [], iter(shares)
    for stage, count in enumerate(replicas):
        own = [next(left) for _ in range(count)]
        if sum(own) != total or min(own) < 1:
            raise ValueError(
                f"parallel.replica_shares gives stage {stage} {'+'.join(map(str, own))} of {total} microbatches; they "
                "must add up, and each be at least 1"
            )
        rows.append(tuple(r for r, share in enumerate(own) for _ in range(share)))
    return tuple(rows)


def _block(total: int, parts: int, index: int) -> tuple[int, int]:
    return index * total // parts, (index + 1) * total // parts
