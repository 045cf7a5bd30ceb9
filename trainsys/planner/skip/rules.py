"""Where a microbatch may go next: the rules that keep training with skipped stages convergent (SkipPipe, section 4).

It never visits a stage twice; it goes up, leaving out at most `max_skip` stages in a row, before the first visit and
after the last one too; and up to `max_swaps` times it goes to the stage right below the highest one that it has seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import combinations, pairwise

from trainsys.planner.skip.setting import Setting


@lru_cache(maxsize=1 << 16)
def steps(stages: int, visits: int, max_skip: int, max_swaps: int, seen: tuple[int, ...]) -> tuple[int, ...]:
    """Stages that may follow `seen` (0 first) such that the rules still let the microbatch make all its `visits`.

    What is left out for good is what counts: a stage that a later swap comes back for is not.
    """
    return tuple(s for s in range(1, stages) if _ends(stages, visits, max_skip, max_swaps, (*seen, s)))


def next_stages(setting: Setting, seen: tuple[int, ...]) -> tuple[int, ...]:
    """`steps` of a setting."""
    return steps(setting.num_stages, setting.visits, setting.max_skip, setting.max_swaps, seen)


@lru_cache(maxsize=1 << 16)
def _ends(stages: int, visits: int, max_skip: int, max_swaps: int, seen: tuple[int, ...]) -> bool:
    """Whether `seen` is allowed so far and can be completed."""
    before, stage = seen[:-1], seen[-1]
    frontier = max(before)
    if stage in before or stage < frontier - 1 or stage - frontier - 1 > max_skip:
        return False
    if stage < frontier and sum(b < max(seen[:i]) for i, b in enumerate(seen) if i) > max_swaps:
        return False
    if len(seen) == visits:
        return stages - 1 - max(seen) <= max_skip
    return any(_ends(stages, visits, max_skip, max_swaps, (*seen, s)) for s in range(1, stages))


def stage_sets(setting: Setting) -> tuple[tuple[int, ...], ...]:
    """All ascending choices of ``visits - 1`` stages beyond 0 that the rules allow."""
    return _sets(setting.num_stages, setting.visits, setting.max_skip)


@lru_cache(maxsize=64)
def _sets(stages: int, visits: int, max_skip: int) -> tuple[tuple[int, ...], ...]:
    def gaps(chosen: Sequence[int]) -> Iterator[int]:
        around = (0, *chosen, stages)
        return (b - a - 1 for a, b in pairwise(around))

    return tuple(c for c in combinations(range(1, stages), visits - 1) if max(gaps(c)) <= max_skip)


def leaves_room(capacity: Sequence[int], left: int, visits: int) -> bool:
    """Whether `left` microbatches can still visit ``visits - 1`` different stages each (Gale 1957, Ryser 1957; the
    rule about gaps aside).

    Args:
        capacity: ``[stage]``: visits that each stage still takes; stage 0 does not matter.
    """
    return sum(min(room, left) for room in capacity[1:]) >= left * (visits - 1)
