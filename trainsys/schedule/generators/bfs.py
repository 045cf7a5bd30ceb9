"""Looped breadth-first schedule (Lamy-Poirier 2023, arXiv:2211.05953, section 3): all microbatches through one run of
layers, then all through the next, and back in the opposite order.

The bubble is that of the interleaved schedule, (P - 1)/vp · (tF + tB); every lane keeps the activations of all m
microbatches. The weights of a run are in use once per direction, which is what sharded or offloaded ones want.
"""

from __future__ import annotations

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only schedule for any replicas; forwards in `Routes.order`, backwards in its reverse."""
    routes, placement, order = problem.routes, problem.placement, problem.routes.order()
    lanes: list[list[Action]] = [[] for _ in set(placement.values())]
    forward = [(stage, mb) for stage in range(routes.num_stages) for mb in order]
    for kind, work in ((Kind.F, forward), (Kind.B, forward[::-1])):
        for stage, mb in work:
            lanes[placement[stage, routes.table[stage][mb]]].append(Action(stage, kind, mb))
    return Schedule("bfs", routes, tuple(map(tuple, lanes)), placement)
