"""Layers moved between stages by what stages were measured to take: the least of the longest stage.

A minimax dynamic program over stages, as in ElasWave (arXiv:2510.00606): the best split of the first `l` layers over
the first `s` stages is the best over where stage `s` begins of max(best before, its seconds). O(stages · layers²).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf


def rebalance(
    layer_s: Sequence[Sequence[float]],
    current: Sequence[int],
    fixed_s: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Layers of each stage such that the longest stage is shortest, at least one each; of equals the fewest moved.

    Args:
        layer_s: [stage][layer], what a layer would take on that stage.
        current: layers of each stage now.
        fixed_s: what each stage takes besides, such as the embedding or the head; by default nothing.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    stages, layers = len(current), sum(current)
    if layers < stages:
        raise ValueError(f"model.num_layers={layers} is fewer than {stages} stages; lower parallel.pp")
    fixed = list(fixed_s) if fixed_s is not None else [0.0] * stages
    home = [stage for stage, count in enumerate(current) for _ in range(count)]
    least = _least(layer_s, fixed, stages, layers)
    return _fewest_moved(layer_s, fixed, home, least)[1]


def _least(layer_s: Sequence[Sequence[float]], fixed: Sequence[float], stages: int, layers: int) -> float:
    """Seconds of the longest stage of the best split."""
    best = [0.0] + [inf] * layers  # of the first l layers over the stages so far
    for stage in range(stages):
        sums = [0.0, *accumulate(layer_s[stage])]
        best = [
            min(
                (max(best[a], fixed[stage] + sums[b] - sums[a]) for a in range(stage, b)),
                default=inf,
            )
            for b in range(layers + 1)
        ]
    return best[layers]


def _fewest_moved(
    layer_s: Sequence[Sequence[float]], fixed: Sequence[float], home: Sequence[int], most: float
) -> tuple[int, tuple[int, ...]]:
    """Of the splits whose stages all take at most `most`: (layers that change their stage, the split)."""
    stages, layers, slack = len(layer_s), len(home), most * (1 + 1e-12)
    best: list[tuple[int, tuple[int, ...]] | None] = [(0, ())] + [None] * layers
    for stage in range(stages):
        row: list[tuple[int, tuple[int, ...]] | None] = [None] * (layers + 1)
        for first in range(layers):
            before, taken, moved = best[first], fixed[stage], 0
            if before is None:
                continue
            for stop in range(first + 1, layers + 1):
                taken += layer_s[stage][stop - 1]
                moved += home[stop - 1] != stage
                if taken > slack:
                    break
                option = before[0] + moved, (*before[1], stop - first)
                found = row[stop]
                row[stop] = option if found is None or option < found else found
        best = row
    found = best[layers]
    assert found is not None, (most, home)
    return found
