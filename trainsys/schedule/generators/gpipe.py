"""GPipe (Huang et al. 2019, arXiv:1811.06965, section 2.3): every forward, then every backward.

Step time (m + P - 1)·(tF + tB), bubble (P - 1)/(m + P - 1); every lane keeps all its m microbatches' activations. Under
vp each run of layers takes all microbatches before the next one does (Lamy-Poirier 2023, arXiv:2211.05953).
"""

from __future__ import annotations

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only GPipe schedule, both directions in `Routes.order`."""
    routes, placement, order = problem.routes, problem.placement, problem.routes.order()
    lanes: list[list[Action]] = [[] for _ in set(placement.values())]
    for kind, pairs in ((Kind.F, sorted(placement)), (Kind.B, sorted(placement, reverse=True))):
        for stage, replica in pairs:
            mine = [mb for mb in order if routes.table[stage][mb] == replica]
            lanes[placement[stage, replica]] += [Action(stage, kind, mb) for mb in mine]
    return Schedule("gpipe", routes, tuple(map(tuple, lanes)), placement)
