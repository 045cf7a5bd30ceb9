"""The peer of `choose_places`: partitions bred as in SkipPipe (Blagoev et al. 2025, section 4.1), in our own words.

Population 200, two parents chosen by tournament, crossover at five points on the nodes' order with repair, one exchange
of two nodes as mutation, the child replaces the worst. Cost: the worst home's best path in an idle cluster and the
slowest reduction of gradients.
"""

from __future__ import annotations

from random import Random

from trainsys.planner.skip.agent import Map
from trainsys.planner.skip.places import any_places, grouped
from trainsys.planner.skip.setting import Setting, Stages

_POPULATION, _POINTS = 200, 5


def worst_path_s(setting: Setting, stages: Stages) -> float:
    """Seconds of the longest of the homes' shortest ways, with the reduction."""
    ways = Map(setting, stages)
    return max(ways.least_s(home) for home in stages[0]) + setting.reduction_s(stages)


def breed(setting: Setting, trials: int, seed: int = 0) -> Stages:
    """The best partition after `trials` children."""
    dice = Random(seed)
    people = [[n for nodes in any_places(setting, seed + i) for n in nodes] for i in range(min(_POPULATION, trials))]
    costs = [worst_path_s(setting, grouped(setting, one)) for one in people]
    for _ in range(trials - len(people)):
        child = _cross(_chosen(people, costs, dice), _chosen(people, costs, dice), dice)
        a, b = dice.randrange(len(child)), dice.randrange(len(child))
        child[a], child[b] = child[b], child[a]
        cost = worst_path_s(setting, grouped(setting, child))
        worst = max(range(len(people)), key=costs.__getitem__)
        if cost < costs[worst]:
            people[worst], costs[worst] = child, cost
    return grouped(setting, people[min(range(len(people)), key=costs.__getitem__)])


def _chosen(people: list[list[int]], costs: list[float], dice: Random) -> list[int]:
    return people[min((dice.randrange(len(people)) for _ in range(3)), key=costs.__getitem__)]


def _cross(mother: list[int], father: list[int], dice: Random) -> list[int]:
    """Runs of places in turn from both; a node that is there already gives way to one that is missing."""
    cuts = sorted(dice.sample(range(1, len(mother)), min(_POINTS, len(mother) - 1)))
    child = [(father if sum(cut <= i for cut in cuts) % 2 else mother)[i] for i in range(len(mother))]
    missing, seen = [n for n in father if n not in child], set[int]()
    for i, node in enumerate(child):
        if node in seen:
            child[i] = missing.pop(0)
        seen.add(node)
    return child
