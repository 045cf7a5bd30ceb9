"""The schedule with the shortest simulated step of all that suit a problem and its cap, for the costs given.

Candidates are the registered schedules and what the order of events gives under several priorities. One column stands
for all that are equal, and long steps are compared by what two shorter ones say of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators.columns import column_of, columns_of
from trainsys.schedule.generators.ready import Priority, in_order_of_events, limits
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import simulate

Generate = Callable[[Problem], Schedule]

PRIORITIES = (
    Priority(),
    Priority(patience=0.5),
    Priority(patience=1.0),
    Priority(grouped=True),
    Priority(grouped=True, patience=0.5),
)


def generate(problem: Problem) -> Schedule:
    """Compute-only schedule; its name says what it is, as in ``auto:zb2p``.

    Raises:
        ValueError: for a cap below the one microbatch that any schedule keeps.
    """
    proxies, more = _proxies(problem)
    ranked = []
    for place, (name, candidate) in enumerate(_candidates()):
        try:
            steps = [_step_s(candidate, proxy) for proxy in proxies]
        except ValueError:  # of a schedule that is for other problems
            continue
        ranked.append((round(steps[-1] + more * (steps[-1] - steps[0]), 12), place, name, candidate))
    for _, _, name, candidate in sorted(ranked, key=lambda entry: entry[:2]):
        try:
            return dataclasses.replace(candidate(problem), name=f"auto:{name}")
        except ValueError:  # a longer step keeps more than a short one
            continue
    raise AssertionError("the order of events suits every problem")


def _candidates() -> Iterator[tuple[str, Generate]]:
    from trainsys.schedule.generators import GENERATORS  # of which this is one

    yield from ((name, candidate) for name, candidate in GENERATORS.items() if name != "auto")
    for priority in PRIORITIES:
        yield "events", partial(_by_events, priority=priority)


def _by_events(problem: Problem, priority: Priority) -> Schedule:
    """As many activations as the cap allows, or 2P microbatches."""
    most = limits(problem, problem.cap or 2 * problem.depth)
    return Schedule("events", problem.routes, in_order_of_events(problem, most, priority), problem.placement)


def _step_s(generate: Generate, problem: Problem) -> float:
    return simulate(insert_comms(generate(problem)), problem.seconds).step_s


def _proxies(problem: Problem) -> tuple[list[Problem], float]:
    """The problem with one column of all that are equal, or of a long step two shorter ones, and how much longer it is:
    in units of the difference of the two, than the second.
    """
    columns, depth = columns_of(problem), problem.depth
    if columns:
        lanes, microbatches = max(columns, key=lambda column: len(column[1]))
        whole, m = column_of(problem, lanes, len(microbatches)).alone, len(microbatches)
    else:
        replicas = problem.routes.replicas[:depth]
        m = -(-problem.routes.num_microbatches // max(replicas))

        def whole(count: int) -> Problem:
            if count == m:
                return problem
            routes = Routes.balanced(count * max(replicas), replicas, problem.vp, problem.folded)
            return dataclasses.replace(problem, routes=routes)

    if m <= 3 * depth:
        return [whole(m)], 0.0
    return [whole(2 * depth), whole(3 * depth)], (m - 3 * depth) / depth
