"""Proof that a schedule computes the step and ends: complete, matched, ordered, free of cyclic waits."""

from __future__ import annotations

from itertools import pairwise

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.schedule import Schedule, ScheduleError
from trainsys.schedule.simulate import simulate

_Place = tuple[int, int]  # (lane, place in its list)


def verify(schedule: Schedule) -> None:
    """Accept a schedule (with its comms) only if every executor that follows it ends with the step's gradients.

    Checked: every action is on the lane that its route says, once; every (stage, microbatch) has one F and one B, or
    one F, I and W, in this order, so that each activation is used and freed; every tensor that crosses lanes has one
    SEND after its producer and one RECV before its consumer, and no other SEND or RECV exists; lanes never wait for
    each other in a cycle.

    Raises:
        ScheduleError: naming the lane and the action.
    """
    places = _places(schedule)
    for stage in range(schedule.routes.num_stages):
        for mb in range(schedule.routes.num_microbatches):
            _check_compute(schedule, places, stage, mb)
    for action, (lane, place) in places.items():
        if not action.is_compute:
            _check_comm(schedule, places, action, lane, place)
    # Every wait is now for a compute action that exists; whether they end does not depend on what they cost.
    free = [0.0] * schedule.routes.num_stages
    simulate(schedule, Costs(free, free))


def _places(schedule: Schedule) -> dict[Action, _Place]:
    """Where each action stands; each at most once, within range, on its own lane."""
    routes, places = schedule.routes, dict[Action, _Place]()
    pairs = {(stage, replica) for stage, count in enumerate(routes.replicas) for replica in range(count)}
    for stage, replica in sorted(pairs - set(schedule.placement)):
        raise ScheduleError(f"stage {stage} replica {replica} has no lane in the placement")
    for lane, actions in enumerate(schedule.lanes):
        for place, action in enumerate(actions):
            if not (0 <= action.stage < routes.num_stages and 0 <= action.microbatch < routes.num_microbatches):
                size = f"{routes.num_stages} stages, {routes.num_microbatches} microbatches"
                raise ScheduleError(f"lane {lane}: {action} is outside of the step ({size})")
            home = schedule.lane_of(action.stage, action.microbatch)
            if home != lane:
                raise ScheduleError(f"lane {lane}: {action} belongs on lane {home}")
            if action in places:
                raise ScheduleError(f"lane {lane}: {action} appears twice")
            places[action] = (lane, place)
    return places


def _check_compute(schedule: Schedule, places: dict[Action, _Place], stage: int, mb: int) -> None:
    """One F, then one B or one I and one W, each with its tensors' SEND and RECV."""
    lane = schedule.lane_of(stage, mb)
    split = any(Action(stage, kind, mb) in places for kind in (Kind.I, Kind.W))
    kinds = (Kind.F, Kind.I, Kind.W) if split else (Kind.F, Kind.B)
    if split and Action(stage, Kind.B, mb) in places:
        raise ScheduleError(f"lane {lane}: {Action(stage, Kind.B, mb)} stands beside its own halves I and W")
    actions = [Action(stage, kind, mb) for kind in kinds]
    for action in actions:
        if action not in places:
            raise ScheduleError(f"lane {lane}: {action} is missing")
    for first, second in pairwise(actions):
        if places[first] > places[second]:
            raise ScheduleError(f"lane {lane}: {second} comes before {first}")
    forward, backward = actions[:2]
    for action, kind, late in (
        (forward, Kind.RECV_F, False),
        (forward, Kind.SEND_F, True),
        (backward, Kind.RECV_B, False),
        (backward, Kind.SEND_B, True),
    ):
        comm = Action(stage, kind, mb)
        if schedule.peer(comm) in (None, lane):
            continue
        if comm not in places:
            raise ScheduleError(f"lane {lane}: {action} has no {comm}")
        if (places[comm] > places[action]) != late:
            raise ScheduleError(f"lane {lane}: {comm} comes {'before' if late else 'after'} {action}")


def _check_comm(schedule: Schedule, places: dict[Action, _Place], action: Action, lane: int, place: int) -> None:
    """A SEND or RECV has another lane, and its counterpart, at its other end."""
    peer = schedule.peer(action)
    if peer is None:
        raise ScheduleError(f"lane {lane}: {action} (place {place}) has no stage at its other end")
    if peer == lane:
        raise ScheduleError(f"lane {lane}: {action} (place {place}) sends to its own lane")
    if places.get(action.counterpart(), (-1, -1))[0] != peer:
        raise ScheduleError(f"lane {lane}: {action} (place {place}) has no {action.counterpart()} on lane {peer}")
