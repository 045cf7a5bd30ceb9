"""Which node serves which stage: annealed, every candidate scored by the event simulation.

SkipPipe breeds partitions whose cost is the worst single path. That a microbatch can go somewhere quickly says little
of what happens when all go there, so here a candidate's cost is the simulated step of greedy paths on it, which takes
no longer to compute, and a move is an exchange of two nodes. `trainsys bench skip` compares both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from random import Random
from time import perf_counter

from trainsys.planner.skip.dispatch import Order, dispatch
from trainsys.planner.skip.setting import Setting, Stages
from trainsys.planner.skip.start import greedy_paths

_SPREAD = 1.0
_CHAINS = 2
_NEAR_MOVES = 2000
_NEAR_HEAT, _HEAT = (0.3, 0.01), (0.03, 0.001)  # first and last temperature, as shares of the cost; fitted
_SMOOTH = 0.3  # weight of the mean reduction; fitted


def any_places(setting: Setting, seed: int = 0) -> Stages:
    """Nodes in stages at random."""
    nodes = list(range(setting.num_nodes))
    Random(seed).shuffle(nodes)
    return grouped(setting, nodes)


def grouped(setting: Setting, nodes: Sequence[int]) -> Stages:
    """The first ``replicas[0]`` of `nodes` to stage 0, and so on; ascending within a stage."""
    stages, first = list[tuple[int, ...]](), 0
    for count in setting.replicas:
        stages.append(tuple(sorted(nodes[first : first + count])))
        first += count
    return tuple(stages)


def places_s(setting: Setting, stages: Stages) -> float:
    """Seconds of a step with greedy paths, the reduction of gradients included."""
    paths = greedy_paths(setting, stages, _SPREAD)
    order = Order(tuple(range(setting.microbatches)))
    return dispatch(setting, paths, order).step_s + setting.reduction_s(stages)


def choose_places(setting: Setting, evaluations: int = 2000, seconds: float = 10.0, seed: int = 0) -> Stages:
    """The best places found; never worse by `places_s` than the places at random that it begins with.

    `_CHAINS` times from new places: first the reduction alone is annealed, which takes no simulation and brings the
    nodes of a stage near each other, then the step.

    Args:
        evaluations: of `places_s`; the same number and seed find the same places.
        seconds: ends the search early.

    Raises:
        ValueError: no evaluations, no time, or limits that leave no paths.
    """
    if evaluations < 1 or not seconds > 0:
        raise ValueError(f"evaluations={evaluations} must be at least 1 and seconds={seconds:g} positive")
    dice, until = Random(seed), perf_counter() + seconds
    start = _flat(any_places(setting, seed))
    found = [(places_s(setting, grouped(setting, start)), start)]

    def near(nodes: list[int]) -> tuple[float, float]:
        stages = grouped(setting, nodes)
        return (s := setting.reduction_s(stages)), s + _mean_reduction_s(setting, stages)

    def step(nodes: list[int]) -> tuple[float, float]:
        stages = grouped(setting, nodes)
        return (s := places_s(setting, stages)), s + _SMOOTH * _mean_reduction_s(setting, stages)

    for _ in range(_CHAINS):
        nodes = list(start)
        if setting.reduce_s:
            nodes = _anneal(setting, nodes, near, _NEAR_MOVES, _NEAR_HEAT, dice, until)[1]
        found.append(_anneal(setting, nodes, step, (evaluations - 1) // _CHAINS, _HEAT, dice, until))
        dice.shuffle(start)
    return grouped(setting, min(found)[1])


def _anneal(
    setting: Setting,
    now: list[int],
    cost: Callable[[list[int]], tuple[float, float]],
    moves: int,
    heat: tuple[float, float],
    dice: Random,
    until: float,
) -> tuple[float, list[int]]:
    """The best (cost, nodes in stage order) after at most `moves` exchanges of two nodes.

    Args:
        cost: of an order: what counts, and the smoother one that decides what is accepted.
        heat: first and last temperature, as shares of the best cost.
    """
    stage_of = [stage for stage, count in enumerate(setting.replicas) for _ in range(count)]
    if moves < 1:
        return float("inf"), now
    best_s, now_s = cost(now)
    best = now
    for made in range(1, moves):
        if perf_counter() > until:
            break
        a = dice.randrange(len(now))
        b = dice.choice([i for i, stage in enumerate(stage_of) if stage != stage_of[a]])
        tried = list(now)
        tried[a], tried[b] = tried[b], tried[a]
        counts_s, tried_s = cost(tried)
        if tried_s <= now_s - best_s * heat[0] * (heat[1] / heat[0]) ** (made / moves) * log(1 - dice.random()):
            now, now_s = tried, tried_s
        if counts_s < best_s:
            best, best_s = tried, counts_s
    return best_s, best


def _mean_reduction_s(setting: Setting, stages: Stages) -> float:
    """Over the stages: unlike the longest, it tells when one of several long ones gets shorter."""
    return sum(setting.reduction_s((nodes,)) for nodes in stages) / len(stages)


def _flat(stages: Stages) -> list[int]:
    return [node for nodes in stages for node in nodes]
