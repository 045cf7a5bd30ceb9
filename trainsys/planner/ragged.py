"""A pipeline whose stages differ in replicas: times and activations of `trainsys.schedule.simulate`, without events.

After a loss many such pipelines are candidates, while ranks wait. Unless it has two stages under vp, a message's
link carries forwards only or backwards only, in the order in which both of its ends run them, so that times follow from
one pass over the actions. A test compares every number with the simulation's.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from trainsys.planner.lane_order import sorted_actions
from trainsys.schedule import GENERATORS, Problem, Routes
from trainsys.schedule.generators.one_f_one_b import numbered
from trainsys.schedule.schedule import stage_major

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Order:
    """The compute actions of all lanes, as numbers: of m microbatches, F of run s (without vp: stage) for microbatch i
    is s·m + i, and B that of all runs later.

    Attributes:
        actions: in an order in which nothing comes before what it needs.
        lane_of: of each F.
        alive: most activations that each lane keeps.
    """

    actions: array[int]
    lane_of: tuple[int, ...]
    alive: tuple[int, ...]


@lru_cache(maxsize=64)
def ragged_order(name: str, microbatches: int, replicas: tuple[int, ...], vp: int = 1) -> Order:
    """What each lane does when. Raises ValueError for more replicas than microbatches."""
    routes = Routes.balanced(microbatches, replicas, vp)
    placement = stage_major(replicas * vp, vp)
    if name == "1f1b":
        actions = numbered(routes)
    else:
        actions = sorted_actions(GENERATORS[name](Problem(routes, vp)).lanes, microbatches, len(replicas) * vp)
    lane_of = [placement[stage, replica] for stage, row in enumerate(routes.table) for replica in row]
    alive, most, count = [0] * sum(replicas), [0] * sum(replicas), len(lane_of)
    for action in actions:
        lane = lane_of[action % count]
        alive[lane] += 1 if action < count else -1
        if alive[lane] > most[lane]:
            most[lane] = alive[lane]
    return Order(actions, tuple(lane_of), tuple(most))


def ragged_times(
    order: Order, microbatches: int, f_s: Sequence[float], b_s: Sequence[float],
    hops: Mapping[tuple[int, int], float] | None,
) -> tuple[list[float], list[float]]:  # fmt: skip
    """When each lane ends, and how long it computes.

    A transfer starts when its producer is done, the receiver has begun the compute action before the one that waits,
    and the link is free, as in `lane_order.lane_times`.

    Args:
        f_s, b_s: seconds per run of layers.
        hops: seconds of a message between lanes (source, destination); none: 0.
    """
    lane_of, count = order.lane_of, len(order.lane_of)
    top, num_lanes = 2 * count, len(order.alive)
    end = [0.0] * top
    now, posted, busy = [0.0] * num_lanes, [0.0] * num_lanes, [0.0] * num_lanes
    free: dict[tuple[int, int], float] = {}
    for action in order.actions:
        forward = action < count
        work = action if forward else action - count
        lane, run = lane_of[work], work // microbatches
        needed = action - microbatches if forward else action + microbatches
        start, seconds = now[lane], f_s[run] if forward else b_s[run]
        if run if forward else needed < top:
            link = lane_of[needed if forward else needed - count], lane
            arrived = max(end[needed], posted[lane], free.get(link, 0.0)) + (hops[link] if hops else 0.0)
            free[link] = arrived
            if arrived > start:
                start = arrived
        posted[lane] = now[lane]
        now[lane] = end[action] = start + seconds
        busy[lane] += seconds
    return now, busy


def per_stage(replicas: Sequence[int], lanes: Sequence[Number]) -> list[Number]:
    """The most of each stage's lanes."""
    most: dict[int, Number] = {}
    for (stage, _), lane in stage_major(tuple(replicas)).items():
        most[stage] = max(most.get(stage, lanes[lane]), lanes[lane])
    return [most[stage] for stage in range(len(replicas))]
