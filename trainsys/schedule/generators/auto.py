"""The schedule with the shortest simulated step of all that suit a problem and its cap, for the costs given.

`planner.step_schedule` gives it FLOPs alone, on which all ranks agree: neither links nor lengths.

Candidates are the registered schedules and what the order of events gives under several priorities. One column stands
for all that are equal, and two shorter steps for a long one. All are compared on a clock without links, and the best
few in the simulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators.clock import step_s
from trainsys.schedule.generators.columns import column_of, columns_of
from trainsys.schedule.generators.ready import Priority, in_order_of_events, limits
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import simulate

Generate = Callable[[Problem], Schedule]
Candidate = tuple[str, Generate]

PRIORITIES = (
    Priority(),
    Priority(patience=0.5),
    Priority(patience=1.0),
    Priority(grouped=True),
    Priority(grouped=True, patience=0.5),
)
_SIMULATED = 3


def generate(problem: Problem) -> Schedule:
    """Compute-only schedule; its name says what it is, as in ``auto:zb2p``.

    Raises:
        ValueError: for a cap below the one microbatch that any schedule keeps.
    """
    columns = columns_of(problem)
    if columns:
        lanes, microbatches = max(columns, key=lambda column: len(column[1]))
        column = column_of(problem, lanes, len(microbatches))
        counts, more = _counts(column.microbatches, problem.depth)
        proxies = [column.alone(count) for count in counts]
        ranked = _ranked(_candidates(), proxies, more, lambda schedule, _: step_s(column, schedule.lanes))
        ranked = _ranked(ranked[:_SIMULATED], proxies, more, _simulated) + ranked[_SIMULATED:]
    else:
        ranked = _ranked(_candidates(), *_ragged(problem), _simulated)
    for name, candidate in ranked:
        try:
            return dataclasses.replace(candidate(problem), name=f"auto:{name}")
        except ValueError:  # a longer step keeps more than a short one
            continue
    raise AssertionError("the order of events suits every problem")


def _candidates() -> list[Candidate]:
    from trainsys.schedule.generators import GENERATORS  # of which this is one

    named = [(name, candidate) for name, candidate in GENERATORS.items() if name != "auto"]
    return named + [("events", partial(_by_events, priority=priority)) for priority in PRIORITIES]


def _by_events(problem: Problem, priority: Priority) -> Schedule:
    """As many activations as the cap allows, or 2P microbatches."""
    most = limits(problem, problem.cap or 2 * problem.depth)
    return Schedule("events", problem.routes, in_order_of_events(problem, most, priority), problem.placement)


def _simulated(schedule: Schedule, problem: Problem) -> float:
    return simulate(insert_comms(schedule), problem.seconds).step_s


def _ranked(
    candidates: list[Candidate], proxies: list[Problem], more: float, seconds: Callable[[Schedule, Problem], float]
) -> list[Candidate]:
    """Those that suit the problem, the shortest first; of equal ones the first.

    Args:
        proxies: the problem, or a shorter and a longer step.
        more: how much longer the problem is than the longer one, in units of their difference.
    """
    scored = []
    for place, (_, candidate) in enumerate(candidates):
        try:
            steps = [seconds(candidate(proxy), proxy) for proxy in proxies]
        except ValueError:  # a schedule for other problems
            continue
        scored.append((round(steps[-1] + more * (steps[-1] - steps[0]), 12), place))
    return [candidates[place] for _, place in sorted(scored)]


def _counts(microbatches: int, depth: int) -> tuple[list[int], float]:
    """Microbatches of the proxies of one pipeline, and how much longer it is."""
    if microbatches <= 3 * depth:
        return [microbatches], 0.0
    return [2 * depth, 3 * depth], microbatches / depth - 3


def _ragged(problem: Problem) -> tuple[list[Problem], float]:
    """Proxies of a problem whose stages differ in replicas, with balanced routes, and how much longer it is."""
    replicas = problem.routes.replicas[: problem.depth]
    counts, more = _counts(-(-problem.routes.num_microbatches // max(replicas)), problem.depth)
    if len(counts) == 1:
        return [problem], 0.0

    def shorter(count: int) -> Problem:
        routes = Routes.balanced(count * max(replicas), replicas, problem.vp, problem.folded)
        return dataclasses.replace(problem, routes=routes)

    return [shorter(count) for count in counts], more
