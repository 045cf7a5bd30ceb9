"""Layers moved between stages by what stages were measured to take: the least of the longest stage.

A minimax dynamic program over stages, as in ElasWave (arXiv:2510.00606): the best split of the first `l` layers over
the first `s` stages is the best over where stage `s` begins of max(best before, its seconds). O(stages · layers²). What
does not change counts less: a layer that moves adds its share of the move to the step, until the next change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import inf


def rebalance(
    layer_s: Sequence[Sequence[float]],
    current: Sequence[int],
    fixed_s: Sequence[float] | None = None,
    move_s: float = 0.0,
) -> tuple[int, ...]:
    """Layers of each stage such that the longest stage is shortest, at least one each; of equals the fewest moved.

    Args:
        layer_s: [stage][layer], what a layer would take on that stage; see `per_layer`.
        current: layers of each stage now.
        fixed_s: what each stage takes besides, such as the embedding or the head; by default nothing.
        move_s: what one layer that changes its stage costs, per step until the next change.

    Raises:
        ValueError: there are fewer layers than stages.
    """
    stages, layers = len(current), sum(current)
    if layers < stages:
        raise ValueError(f"model.num_layers={layers} is fewer than {stages} stages; lower parallel.pp")
    fixed = list(fixed_s) if fixed_s is not None else [0.0] * stages
    home = [stage for stage, count in enumerate(current) for _ in range(count)]
    least = _least(layer_s, fixed, stages, layers)
    if not move_s:
        return _fewest_moved(layer_s, fixed, home, least)[1]
    # the longest stage allowed against the moves that it takes: each level is one stage's seconds in some split
    options = (
        (level, *_fewest_moved(layer_s, fixed, home, level)) for level in _levels(layer_s, fixed, current, least)
    )
    return min(options, key=lambda option: option[0] + move_s * option[1])[2]


def per_layer(stage_s: Sequence[float], current: Sequence[int], weight: Sequence[float] = ()) -> list[list[float]]:
    """[stage][layer] from measured seconds of whole stages: a stage's seconds by the weights of its layers, and the
    same pace for every other layer there.

    Args:
        stage_s: measured, per stage.
        current: layers of each stage when it was measured.
        weight: of each layer, such as its FLOPs; by default all alike.
    """
    weights = list(weight) or [1.0] * sum(current)
    cuts = [0, *accumulate(current)]
    paces = [s / sum(weights[a:b]) for s, (a, b) in zip(stage_s, pairwise(cuts), strict=True)]
    return [[pace * w for w in weights] for pace in paces]


def longest_s(
    layer_s: Sequence[Sequence[float]], split: Sequence[int], fixed_s: Sequence[float] | None = None
) -> float:
    """Seconds of the longest stage of a split."""
    cuts = [0, *accumulate(split)]
    fixed = fixed_s if fixed_s is not None else [0.0] * len(split)
    return max(f + sum(row[a:b]) for f, row, (a, b) in zip(fixed, layer_s, pairwise(cuts), strict=True))


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


def _levels(
    layer_s: Sequence[Sequence[float]], fixed: Sequence[float], current: Sequence[int], least: float
) -> list[float]:
    """Seconds that a longest stage can have, from the least up to those of the present split."""
    now, found = longest_s(layer_s, current, fixed), set[float]()
    for row, besides in zip(layer_s, fixed, strict=True):
        sums = [0.0, *accumulate(row)]
        found |= {besides + b - a for i, a in enumerate(sums) for b in sums[i + 1 :]}
    return sorted({least, now} | {level for level in found if least < level < now})


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
