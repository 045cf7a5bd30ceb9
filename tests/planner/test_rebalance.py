"""The minimax split against all splits."""

from __future__ import annotations

from itertools import accumulate, combinations, pairwise
from random import Random

import pytest

from trainsys.planner.rebalance import rebalance


def splits(layers: int, stages: int) -> list[tuple[int, ...]]:
    return [
        tuple(b - a for a, b in pairwise((0, *cuts, layers))) for cuts in combinations(range(1, layers), stages - 1)
    ]


def longest_s(layer_s: list[list[float]], split: tuple[int, ...], fixed_s: list[float]) -> float:
    cuts = [0, *accumulate(split)]
    return max(f + sum(row[a:b]) for f, row, (a, b) in zip(fixed_s, layer_s, pairwise(cuts), strict=True))


def moved(now: tuple[int, ...], then: tuple[int, ...]) -> int:
    homes = ([s for s, n in enumerate(split) for _ in range(n)] for split in (now, then))
    return sum(a != b for a, b in zip(*homes, strict=True))


@pytest.mark.parametrize("seed", range(15))
def test_as_good_as_the_best_of_all(seed: int) -> None:
    dice = Random(seed)
    stages = dice.randint(2, 4)
    layers = dice.randint(stages, 9)
    layer_s = [[dice.uniform(0.5, 2.0) for _ in range(layers)] for _ in range(stages)]
    fixed_s = [dice.uniform(0.0, 2.0) for _ in range(stages)]
    now = dice.choice(splits(layers, stages))

    def cost(split: tuple[int, ...]) -> float:
        return longest_s(layer_s, split, fixed_s)

    found = rebalance(layer_s, now, fixed_s)
    least = min(map(cost, splits(layers, stages)))
    assert cost(found) == pytest.approx(least)
    equals = [s for s in splits(layers, stages) if cost(s) <= least * (1 + 1e-9)]
    assert moved(now, found) == min(moved(now, s) for s in equals)


def test_a_stage_that_was_measured_slow_gives_layers_away() -> None:
    layer_s, now = [[pace / 4] * 16 for pace in (1.0, 2.0, 1.0, 1.0)], (4, 4, 4, 4)
    then = rebalance(layer_s, now)
    assert then[1] < 4
    assert longest_s(layer_s, then, [0.0] * 4) < longest_s(layer_s, now, [0.0] * 4)


def test_fewer_layers_than_stages() -> None:
    with pytest.raises(ValueError, match=r"parallel\.pp"):
        rebalance([[1.0], [1.0]], (1, 0))
