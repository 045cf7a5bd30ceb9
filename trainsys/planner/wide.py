"""Pipelines of so many replicas or microbatches that `ragged` would take seconds for one, while ranks wait.

Up to `LANES` lanes and `CELLS` (microbatch, run) pairs times are exact. Above, equal replicas are as one with the most
microbatches: each microbatch stays with its replica, so this is exact but for messages, of which the slowest counts.
Of unequal ones a step of `sample` microbatches is run, and what the whole one takes beyond the bound of 1F1B in closed
form (`pipeline.least_ragged_ends`) is taken to be as much: over 22 random pipelines of up to 4,096 microbatches 3 % too
fast to 22 % too slow, 2.5 % too slow in the median. Both are deterministic.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.schedule.generators.one_f_one_b import in_flight_limit

LANES = 64
CELLS = 4096
_EACH, _MOST = 24, 16384  # microbatches of a replica in a sample, and pairs in all unless the replicas are more


def is_wide(microbatches: int, replicas: Sequence[int], runs: int) -> bool:
    """Whether one pass over every action would take too long."""
    return sum(replicas) > LANES or microbatches * runs > CELLS


def sample(microbatches: int, replicas: Sequence[int], runs: int) -> int:
    """Microbatches of the shorter step: at least one for each replica."""
    widest = max(replicas)
    return min(microbatches, max(widest, min(_EACH * widest, _MOST // runs)))


def most_alive(name: str, microbatches: int, replicas: tuple[int, ...], vp: int) -> tuple[int, ...]:
    """Activations that no lane of each stage keeps more than: the limits of schedule `name`."""
    stages, most = len(replicas), [-(-microbatches // count) for count in replicas]
    if name == "1f1b":
        return tuple(min(n, in_flight_limit(replicas, stage)) for stage, n in enumerate(most))
    if name != "interleaved":
        return tuple(n * vp for n in most)
    widest = max(replicas)
    group = -(-microbatches // max(1, microbatches // (stages * widest)))
    limits = []
    for stage, count in enumerate(replicas):  # as in `schedule.generators.interleaved`
        behind = 2 * (stages - 1 - stage) * widest + (vp - 1) * group
        spare = stages * vp if len(set(replicas)) > 1 else 0
        limits.append(min(most[stage] * vp, -(-behind // count) + 1 + spare))
    return tuple(limits)
