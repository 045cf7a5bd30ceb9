"""Paths to begin with: at random, and greedily. Both keep all rules and limits; neither looks at waiting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from trainsys.planner.skip.rules import leaves_room, stage_sets
from trainsys.planner.skip.setting import Paths, Setting, Stages

_TRIES = 100

Choice = Callable[[Sequence[tuple[int, ...]], int], tuple[int, ...]]  # (stage sets, microbatch) -> its path


def random_paths(setting: Setting, stages: Stages, seed: int = 0) -> Paths:
    """Every microbatch visits stages chosen at random, in ascending order, and a random node of each.

    Raises:
        ValueError: if the limits of the stages leave no choice within `max_skip`.
    """
    dice = Random(seed)

    def choose(sets: Sequence[tuple[int, ...]], mb: int) -> tuple[int, ...]:
        return (setting.home(stages, mb), *(dice.choice(stages[stage]) for stage in dice.choice(sets)))

    return _one_by_one(setting, stages, choose, dice)


def greedy_paths(setting: Setting, stages: Stages, spread: float = 0.0, seed: int = 0) -> Paths:
    """Every microbatch goes on to the node that it reaches soonest.

    Args:
        spread: what each microbatch that a node already has counts against it, as a share of its forward; 0: the
            nearest node whatever it has to do.

    Raises:
        ValueError: as `random_paths`.
    """
    load = [0] * setting.num_nodes

    def choose(sets: Sequence[tuple[int, ...]], mb: int) -> tuple[int, ...]:
        path = [setting.home(stages, mb)]
        for depth in range(setting.visits - 1):
            send = setting.send_s[path[-1]]
            reach = [
                (send[node] + spread * load[node] * setting.compute_s[node], stage, node)
                for stage in sorted({chosen[depth] for chosen in sets})
                for node in stages[stage]
            ]
            _, stage, node = min(reach)
            path.append(node)
            sets = [chosen for chosen in sets if chosen[depth] == stage]
        for node in path:
            load[node] += 1
        return tuple(path)

    return _one_by_one(setting, stages, choose, Random(seed), lambda: load.__setitem__(slice(None), [0] * len(load)))


def _one_by_one(
    setting: Setting, stages: Stages, choose: Choice, dice: Random, again: Callable[[], None] = lambda: None
) -> Paths:
    """Each microbatch chooses among the stage sets that leave room for the rest."""
    stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}
    sets, m = stage_sets(setting), setting.microbatches
    for _ in range(_TRIES):
        room, paths = list(setting.capacity), list[tuple[int, ...]]()
        while len(paths) < m and (allowed := _allowed(sets, room, m - len(paths) - 1, setting.visits)):
            paths.append(choose(allowed, len(paths)))
            for node in paths[-1][1:]:
                room[stage_of[node]] -= 1
        if len(paths) == m:
            return tuple(paths)
        again()  # the rule about gaps stood against the limits
        sets = tuple(dice.sample(sets, -(-len(sets) * 3 // 4)))
        sets = sets if len(sets) > 1 else stage_sets(setting)
    raise ValueError(
        f"found no {m} paths of {setting.visits} of {setting.num_stages} stages within max_skip={setting.max_skip} and "
        f"stage_limit={setting.capacity}; raise one of them"
    )


def _allowed(sets: Sequence[tuple[int, ...]], room: Sequence[int], left: int, visits: int) -> list[tuple[int, ...]]:
    """Those of `sets` that have room, and leave room for `left` microbatches more."""
    found = []
    for chosen in sets:
        if all(room[stage] > 0 for stage in chosen):
            rest = [count - (stage in chosen) for stage, count in enumerate(room)]
            if leaves_room(rest, left, visits):
                found.append(chosen)
    return found
