"""Which node serves which stage: annealed, every candidate scored by the event simulation.

SkipPipe breeds partitions whose cost is the worst single path. That a microbatch can go somewhere quickly says little
of what happens when all go there, so here a candidate's cost is the simulated step of greedy paths on it, which takes
no longer to compute, and a move is an exchange of two nodes. `trainsys bench skip` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from random import Random
from time import perf_counter

from trainsys.planner.skip.dispatch import Order, dispatch
from trainsys.planner.skip.setting import Setting, Stages
from trainsys.planner.skip.start import greedy_paths

_SPREAD = 1.0
_HOT, _COLD = 0.03, 0.001  # temperatures, as shares of the first cost; fitted


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
    """The best places found; never worse by `places_s` than those at random that it begins with.

    Args:
        evaluations: of `places_s`; the same number and seed find the same places.
        seconds: ends the search early.

    Raises:
        ValueError: no evaluations, no time, or limits that leave no paths.
    """
    if evaluations < 1 or not seconds > 0:
        raise ValueError(f"evaluations={evaluations} must be at least 1 and seconds={seconds:g} positive")
    dice, begin = Random(seed), perf_counter()
    now = [node for nodes in any_places(setting, seed) for node in nodes]
    stage_of = [stage for stage, count in enumerate(setting.replicas) for _ in range(count)]
    now_s = places_s(setting, grouped(setting, now))
    best, best_s, scale = list(now), now_s, now_s
    for made in range(1, evaluations):
        if perf_counter() - begin > seconds:
            break
        a, b = dice.randrange(len(now)), dice.randrange(len(now))
        if stage_of[a] == stage_of[b]:
            continue
        tried = list(now)
        tried[a], tried[b] = tried[b], tried[a]
        tried_s = places_s(setting, grouped(setting, tried))
        heat = scale * _HOT * (_COLD / _HOT) ** (made / evaluations)
        if tried_s <= now_s or dice.random() < exp((now_s - tried_s) / heat):
            now, now_s = tried, tried_s
        if now_s < best_s:
            best, best_s = list(now), now_s
    return grouped(setting, best)
