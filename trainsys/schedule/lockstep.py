"""Lanes that exchange inside their computation: whether they meet at every action, and never wait in a cycle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trainsys.schedule.actions import VOCABULARY, Action, Kind
from trainsys.schedule.gates import needed
from trainsys.schedule.schedule import Schedule, ScheduleError


def together(groups: Iterable[Iterable[int]]) -> list[list[int]]:
    """Groups of lanes as disjoint sets: what shares a lane runs together."""
    merged: list[set[int]] = []
    for group in map(set, groups):
        touching = [other for other in merged if other & group]
        merged = [other for other in merged if not other & group] + [group.union(*touching)]
    return sorted(map(sorted, merged))


def check_lockstep(schedule: Schedule, groups: Sequence[Sequence[int]]) -> None:
    """Accept a schedule whose `groups` of lanes run each of their compute actions together, as expert parallelism does.

    Args:
        schedule: a verified one.
        groups: disjoint sets of lanes; what is in none runs by itself.

    Raises:
        ScheduleError: lanes of a group differ in what they do when, or groups wait for each other in a cycle.
    """
    lanes = [[action for action in lane if action.is_compute] for lane in schedule.lanes]
    for group in groups:
        kinds = [[(action.stage, action.kind) for action in lanes[lane]] for lane in group]
        for lane, own in zip(group, kinds, strict=True):
            if own != kinds[0]:
                raise ScheduleError(f"lanes {group[0]} and {lane} cannot run in lockstep: {_difference(kinds[0], own)}")
    sets = [list(group) for group in groups]
    sets += [[lane] for lane in range(len(lanes)) if not any(lane in group for group in groups)]
    at, done = [0] * len(sets), set[Action]()
    moved = True
    while moved:
        moved = False
        for i, group in enumerate(sets):
            while at[i] < len(lanes[group[0]]) and all(_ready(schedule, lanes[lane][at[i]], done) for lane in group):
                done.update(lanes[lane][at[i]] for lane in group)
                at[i] += 1
                moved = True
    for i, group in enumerate(sets):
        if at[i] < len(lanes[group[0]]):
            raise ScheduleError(f"lanes {group} in lockstep wait for ever before {lanes[group[0]][at[i]]}")


def _ready(schedule: Schedule, action: Action, done: set[Action]) -> bool:
    """Whether what the neighbouring stage sends for `action` has been computed."""
    routes = schedule.routes
    passes = needed(schedule, action) if schedule.vocabulary != "ends" else []
    if not all(any(a in done for a in any_of) for any_of in passes):
        return False
    if action.kind in VOCABULARY:
        return True
    stage = (routes.before if action.kind is Kind.F else routes.after)(action.stage, action.microbatch)
    if action.kind in (Kind.W, Kind.R) or stage is None:
        return True
    kinds = (Kind.F,) if action.kind is Kind.F else (Kind.B, Kind.I)
    return any(Action(stage, kind, action.microbatch) in done for kind in kinds)


def _difference(first: list[tuple[int, Kind]], second: list[tuple[int, Kind]]) -> str:
    if len(first) != len(second):
        return f"{len(first)} against {len(second)} actions"
    i = next(i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
    return f"action {i} is {first[i][1].value} against {second[i][1].value}"
