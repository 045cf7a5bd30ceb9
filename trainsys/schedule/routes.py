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
        table: ``table[stage][microbatch]`` is the replica of that stage that runs that microbatch.
    """

    table: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.table or not self.table[0]:
            raise ValueError(f"routes need at least one stage and one microbatch, got {self.table}")
        for stage, row in enumerate(self.table):
            if len(row) != self.num_microbatches:
                raise ValueError(f"routes: stage {stage} has {len(row)} microbatches, stage 0 {self.num_microbatches}")
            if set(row) != set(range(max(row) + 1)):
                raise ValueError(f"routes: stage {stage} uses replicas {sorted(set(row))}; number them 0, 1, 2, …")

    @classmethod
    def balanced(cls, num_microbatches: int, replicas: Sequence[int], vp: int = 1, folded: bool = False) -> Routes:
        """Contiguous blocks of near-equal size: of R replicas, r takes [r·M//R, (r+1)·M//R).

        Args:
            num_microbatches: M, of the whole step (global, not per replica).
            replicas: number of replicas of each stage.
            vp, folded: runs of layers of each stage and how they lie (space/runs.py); each is a stage of its own here.

        Raises:
            ValueError: if a stage has more replicas than there are microbatches, or none.
        """
        for stage, count in enumerate(replicas):
            if count < 1:
                raise ValueError(f"stage {stage} has {count} replicas; every stage needs at least 1")
            if count > num_microbatches:
                raise ValueError(
                    f"stage {stage} has {count} replicas but the step has only {num_microbatches} microbatches; "
                    "lower batch.microbatch_size or raise batch.global_size"
                )
        rows = tuple(
            tuple(r for r in range(count) for _ in range(*_block(num_microbatches, count, r))) for count in replicas
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
        """Number of replicas of each stage."""
        return tuple(max(row) + 1 for row in self.table)

    def microbatches(self, stage: int, replica: int) -> tuple[int, ...]:
        """Microbatches of one replica of one stage, ascending."""
        return tuple(mb for mb, r in enumerate(self.table[stage]) if r == replica)

    def order(self) -> tuple[int, ...]:
        """The execution order that all lanes share: each lane runs its microbatches as a subsequence of it.

        Sorted by (the earliest place of the microbatch in any of its replicas' blocks, microbatch), so that a stage
        with one replica, fed by two, takes from them in turn.
        """
        place = [self.num_microbatches] * self.num_microbatches
        for row in self.table:
            seen: Counter[int] = Counter()
            for mb, replica in enumerate(row):
                place[mb] = min(place[mb], seen[replica])
                seen[replica] += 1
        return tuple(sorted(range(self.num_microbatches), key=lambda mb: (place[mb], mb)))


def _block(total: int, parts: int, index: int) -> tuple[int, int]:
    return index * total // parts, (index + 1) * total // parts
