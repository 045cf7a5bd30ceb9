"""The pass that makes a compute-only schedule communicate."""

from __future__ import annotations

import dataclasses

from trainsys.schedule.actions import COMPUTE, Action, Kind
from trainsys.schedule.numbered import ACROSS, find_ways
from trainsys.schedule.schedule import Schedule

_BACKWARD = frozenset({Kind.B, Kind.I})  # what takes and makes a gradient that travels


def insert_comms(schedule: Schedule, prefetch: int = 1) -> Schedule:
    """Add the SENDs and RECVs of every tensor whose producer and consumer are on different lanes.

    A SEND follows its producer at once. A RECV only posts the receive, so it stands `prefetch` compute actions before
    its consumer: with 1 it is posted before the previous compute runs, so the transfer overlaps it, and a lane never
    holds more than one received tensor beyond the one in use. Between two computes receives are posted before sends,
    and copies to and from the host (OFFLOAD, RELOAD) follow both.

    Raises:
        ScheduleError: a replica has no lane in the placement.
    """
    ways, count = find_ways(schedule), schedule.routes.num_microbatches
    source, target = ways.source, ways.target
    lanes = []
    for actions in schedule.lanes:
        receives: list[Action | None] = []  # per compute action
        sends: list[Action | None] = []
        for action in actions:
            kind, stage, mb = action.kind, action.stage, action.microbatch
            if kind not in COMPUTE:
                continue
            receive = send = None
            if kind is Kind.F:
                work = stage * count + mb
                receive = Action(stage, Kind.RECV_F, mb) if source[work] == ACROSS else None
                send = Action(stage, Kind.SEND_F, mb) if target[work] == ACROSS else None
            elif kind in _BACKWARD:
                work = stage * count + mb
                receive = Action(stage, Kind.RECV_B, mb) if target[work] == ACROSS else None
                send = Action(stage, Kind.SEND_B, mb) if source[work] == ACROSS else None
            receives.append(receive)
            sends.append(send)
        lanes.append(_merge(actions, receives, sends, prefetch))
    return dataclasses.replace(schedule, lanes=tuple(lanes))


def _merge(
    actions: tuple[Action, ...], receives: list[Action | None], sends: list[Action | None], prefetch: int
) -> tuple[Action, ...]:
    """The lane with each compute action's SEND behind it, and each RECV `prefetch` compute actions ahead of it."""
    merged = [receive for receive in receives[: prefetch + 1] if receive]
    later = [*receives[prefetch + 1 :], *[None] * (prefetch + 1)]
    places = iter(zip(later, sends, strict=False))
    for action in actions:
        merged.append(action)
        if action.kind in COMPUTE:
            receive, send = next(places)
            if receive:
                merged.append(receive)
            if send:
                merged.append(send)
    return tuple(merged)
