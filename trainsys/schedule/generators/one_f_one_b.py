"""1F1B, also called PipeDream-Flush (Narayanan et al. 2020, arXiv:2006.09503; 2021, arXiv:2104.04473, section 2.2.1).

GPipe's step time, but stage s of P keeps only min(m, P - s) microbatches' activations: a lane starts with as many
forwards as are needed to fill the pipeline behind it, then alternates.

With ragged replicas a fixed alternation can wait in a cycle, so `in_turns` decides it. Its limits never rise here: let
g be the first microbatch in the order whose forward is unfinished. Everything alive on the lane that must run it lies
before g, has finished all its forwards, and so the first of it in the order can always go backward. With equal replicas
the result is the textbook schedule.
"""

from __future__ import annotations

from array import array

from trainsys.schedule.generators.ticks import Work, in_turns, turns
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Placement, Schedule, stage_major


def generate(problem: Problem) -> Schedule:
    """Compute-only 1F1B schedule, one stage per lane.

    Raises:
        ValueError: for vp > 1, whose 1F1B has another name.
    """
    if problem.vp > 1:
        raise ValueError(
            f"parallel.schedule=1f1b has one run of layers per stage, not parallel.vp={problem.vp}; {KNOB}"
        )
    routes, placement = problem.routes, problem.placement
    return Schedule("1f1b", routes, in_turns(routes, placement, *_turns(routes, placement)), placement)


def numbered(routes: Routes) -> array[int]:
    """The actions of the schedule, as `ticks.turns` numbers them, in an order in which none comes before its needs."""
    placement = stage_major(routes.replicas)
    lane_of = [placement[stage, replica] for stage, row in enumerate(routes.table) for replica in row]
    return turns(routes.num_stages, routes.num_microbatches, lane_of, *_turns(routes, placement))


def _turns(routes: Routes, placement: Placement) -> tuple[list[Work], list[Work], list[int]]:
    """Forwards and backwards in the order that all lanes share, and each lane's limit."""
    replicas, stages, order = routes.replicas, range(routes.num_stages), routes.order()
    by_stage = [in_flight_limit(replicas, stage) for stage in stages]
    forwards = [(stage, mb) for mb in order for stage in stages]
    backwards = [(stage, mb) for mb in order for stage in reversed(stages)]
    return forwards, backwards, [by_stage[stage] for stage, _ in placement]


KNOB = "set parallel.schedule=interleaved, or parallel.vp=1"


def in_flight_limit(replicas: tuple[int, ...], stage: int) -> int:
    """Microbatches that one lane of `stage` keeps alive at most: P - s with equal replicas.

    That is the one it works on, its share of what fills the later stages, and one more where a later stage has another
    number of replicas: microbatches then reach the lane unevenly, and the spare one hides most of it (on average over
    264 pipelines whose stages differ by one replica, 0.6 % behind GPipe, at 0.46 of its activations).
    """
    later = replicas[stage + 1 :]
    return 1 - (-sum(later) // replicas[stage]) + any(count != replicas[stage] for count in later)
