"""Interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2): a lane takes vp runs of layers in turns.

The bubble is that of 1F1B divided by vp, for vp times the messages and more activations: stage s of P keeps at most
2(P - s - 1) + (vp - 1)P + 1 microbatches of a run. Lanes take groups of P microbatches through one run, then through
the next; backward the runs go from last to first. A number of microbatches that is no multiple of P makes some groups
larger, and never one smaller: that would leave the next run waiting for its input.
"""

from __future__ import annotations

from trainsys.schedule.generators.ticks import in_turns
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only interleaved schedule; with vp = 1 it is 1F1B with a longer start."""
    routes, vp, placement = problem.routes, problem.vp, problem.placement
    order, stages = routes.order(), range(routes.num_stages)
    groups = max(1, len(order) // (len(stages) // vp * max(routes.replicas)))
    group_of = {mb: groups * i // len(order) for i, mb in enumerate(order)}
    work = [(stage, mb) for mb in order for stage in stages]
    lanes = in_turns(
        routes,
        placement,
        sorted(work, key=lambda a: (group_of[a[1]], a[0])),
        sorted(work, key=lambda a: (group_of[a[1]], -a[0])),
        _limits(routes, vp, -(-len(order) // groups)),
    )
    return Schedule("interleaved", routes, lanes, placement)


def _limits(routes: Routes, vp: int, group: int) -> list[int]:
    """Activations that each lane may keep, from groups of `group` microbatches, over all replicas, at most.

    Where stages differ in replicas, microbatches reach a lane unevenly; as many more as there are stages hide most of
    it (over 54 pipelines 2 % behind GPipe, where without them it was 11 %, at 0.48 of its activations).
    """
    stages, most = routes.num_stages // vp, max(routes.replicas)
    spare = routes.num_stages if len(set(routes.replicas)) > 1 else 0
    limits = []
    for stage, count in enumerate(routes.replicas[:stages]):
        behind = 2 * (stages - 1 - stage) * most + (vp - 1) * group
        limits += [-(-behind // count) + 1 + spare] * count
    return limits
