"""The cap on activations: who may keep fewer does, and what keeps more is refused."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from trainsys.schedule.actions import Kind
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def capped(generate: Callable[[Problem], Schedule]) -> Callable[[Problem], Schedule]:
    """`generate`, which raises ValueError for a cap that its schedule exceeds."""

    def within_cap(problem: Problem) -> Schedule:
        if problem.cap and problem.cap < 1:
            raise ValueError(
                f"parallel.activations={problem.cap:g} is less than the 1 microbatch that a stage keeps at least; set "
                "parallel.activations=1 or 0"
            )
        schedule = generate(problem)
        if problem.cap:
            _check(schedule, problem)
        return schedule

    return within_cap


def _check(schedule: Schedule, problem: Problem) -> None:
    peak = max(most_alive(schedule)) / problem.vp
    if peak > problem.cap + 1e-9:
        peak = ceil(100 * peak - 1e-6) / 100  # a cap of what is shown is enough
        raise ValueError(
            f"parallel.schedule={schedule.name} keeps the activations of {peak:g} microbatches, more than "
            f"parallel.activations={problem.cap:g}; set parallel.activations={peak:g} or 0, or parallel.schedule=auto"
        )


def most_alive(schedule: Schedule) -> list[int]:
    """Most (stage, microbatch) activations that each lane keeps at once, from F to B or W: the order alone decides."""
    most = []
    for lane in schedule.lanes:
        alive = peak = 0
        for action in lane:
            if action.kind is Kind.F:
                alive += 1
                peak = max(peak, alive)
            elif action.kind in (Kind.B, Kind.W):
                alive -= 1
        most.append(peak)
    return most
