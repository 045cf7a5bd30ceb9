"""A schedule as numbers, so that the loops of verifier and simulator touch no objects.

*Work* is all that a stage does for a microbatch: ``stage · num_microbatches + microbatch``. An action is the code of
its kind, and its work.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from trainsys.schedule.actions import Kind
from trainsys.schedule.schedule import Schedule, ScheduleError

CODE = {kind: code for code, kind in enumerate(Kind)}

EDGE, ACROSS, LOCAL = range(3)  # a neighbour on the path: there is none, it is on another lane, on the same lane


@dataclass(frozen=True, slots=True)
class Ways:
    """Where every work lies and what it is next to; indexed by work.

    Attributes:
        lane_of: -1 where the microbatch does not visit the stage.
        before, after: the neighbouring works on the microbatch's path, -1 beyond its ends.
        source, target: EDGE, ACROSS or LOCAL, of the work before and after.
    """

    lane_of: list[int]
    before: list[int]
    after: list[int]
    source: list[int]
    target: list[int]


@dataclass(frozen=True, slots=True)
class Numbered:
    """A schedule's lanes as (codes of the kinds, works), place by place, and the ways between the works."""

    ways: Ways
    lanes: tuple[tuple[bytes, list[int]], ...]


def number(schedule: Schedule) -> Numbered:
    """The numbers of `schedule`.

    Raises:
        ScheduleError: a replica has no lane, or an action is outside of the step or not on the lane of its route.
    """
    ways = find_ways(schedule)
    return Numbered(ways, tuple(_lane(schedule, ways, lane) for lane in range(schedule.num_lanes)))


def find_ways(schedule: Schedule) -> Ways:
    """Lanes and neighbours of every work. Raises ScheduleError where a replica has no lane."""
    routes, placement = schedule.routes, schedule.placement
    for stage, count in enumerate(routes.replicas):
        for replica in range(count):
            if (stage, replica) not in placement:
                raise ScheduleError(f"stage {stage} replica {replica} has no lane in the placement")
    lane_of: list[int] = []
    for stage, row in enumerate(routes.table):
        lanes = {replica: placement[stage, replica] if replica >= 0 else -1 for replica in set(row)}
        lane_of += [lanes[replica] for replica in row]
    count = routes.num_microbatches
    if routes.paths:
        before, after = [-1] * len(lane_of), [-1] * len(lane_of)
        for mb, path in enumerate(routes.paths):
            for here, there in pairwise(path):
                after[here * count + mb] = there * count + mb
                before[there * count + mb] = here * count + mb
    else:
        edge = [-1] * count
        before = edge + list(range(len(lane_of) - count))
        after = list(range(count, len(lane_of))) + edge
    return Ways(lane_of, before, after, _sides(lane_of, before), _sides(lane_of, after))


def _sides(lane_of: list[int], neighbour: list[int]) -> list[int]:
    return [
        EDGE if other < 0 else LOCAL if lane_of[other] == lane else ACROSS
        for lane, other in zip(lane_of, neighbour, strict=True)
    ]


def _lane(schedule: Schedule, ways: Ways, lane: int) -> tuple[bytes, list[int]]:
    """One lane's kinds and works, each known to belong there."""
    actions, count = schedule.lanes[lane], schedule.routes.num_microbatches
    stages, microbatches = [action.stage for action in actions], [action.microbatch for action in actions]
    inside = not actions or (
        min(stages) >= 0
        and max(stages) < schedule.routes.num_stages
        and min(microbatches) >= 0
        and max(microbatches) < count
    )
    works = [stage * count + mb for stage, mb in zip(stages, microbatches, strict=True)]
    if not inside or set(map(ways.lane_of.__getitem__, works)) - {lane}:
        raise ScheduleError(f"lane {lane}: {_stranger(schedule, lane)}")
    return bytes([CODE[action.kind] for action in actions]), works


def _stranger(schedule: Schedule, lane: int) -> str:
    """The first action of `lane` that does not belong there, and why not."""
    routes = schedule.routes
    for action in schedule.lanes[lane]:
        stage, mb = action.stage, action.microbatch
        if not (0 <= stage < routes.num_stages and 0 <= mb < routes.num_microbatches):
            size = f"{routes.num_stages} stages, {routes.num_microbatches} microbatches"
            return f"{action} is outside of the step ({size})"
        if routes.table[stage][mb] < 0:
            return f"{action} is not on the path of microbatch {mb} ({' '.join(map(str, routes.path(mb)))})"
        if schedule.lane_of(stage, mb) != lane:
            return f"{action} belongs on lane {schedule.lane_of(stage, mb)}"
    raise AssertionError(f"every action of lane {lane} belongs there")
