"""The pass that makes a compute-only schedule communicate."""

from __future__ import annotations

import dataclasses

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.schedule import Schedule

_RECV = {Kind.F: Kind.RECV_F, Kind.B: Kind.RECV_B, Kind.I: Kind.RECV_B}
_SEND = {Kind.F: Kind.SEND_F, Kind.B: Kind.SEND_B, Kind.I: Kind.SEND_B}


def insert_comms(schedule: Schedule, prefetch: int = 1) -> Schedule:
    """Add the SENDs and RECVs of every tensor whose producer and consumer are on different lanes.

    A SEND follows its producer at once. A RECV only posts the receive, so it stands `prefetch` compute actions before
    its consumer: with 1 it is posted before the previous compute runs, so the transfer overlaps it, and a lane never
    holds more than one received tensor beyond the one in use. Between two computes receives are posted before sends.
    """
    lanes = []
    for lane, compute in enumerate(schedule.lanes):
        recvs = [_across(schedule, lane, action, _RECV) for action in compute]
        actions = [recv for early in recvs[: prefetch + 1] for recv in early]
        for i, action in enumerate(compute):
            actions.append(action)
            if i + prefetch + 1 < len(compute):
                actions += recvs[i + prefetch + 1]
            actions += _across(schedule, lane, action, _SEND)
        lanes.append(tuple(actions))
    return dataclasses.replace(schedule, lanes=tuple(lanes))


def _across(schedule: Schedule, lane: int, action: Action, kinds: dict[Kind, Kind]) -> list[Action]:
    """The SEND or RECV of `action` if the tensor crosses lanes, else nothing."""
    if action.kind not in kinds:
        return []
    comm = Action(action.stage, kinds[action.kind], action.microbatch)
    return [] if schedule.peer(comm) in (None, lane) else [comm]
