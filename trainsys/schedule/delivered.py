"""What a message proves: that messages sent earlier the other way have been used, and their memory is free."""

from __future__ import annotations

from collections import defaultdict

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.schedule import Schedule

_SENDS = frozenset({Kind.SEND_F, Kind.SEND_B})


def delivered_by(schedule: Schedule, lane: int) -> dict[Action, list[Action]]:
    """For each RECV of `lane`, those of its SENDs that have certainly arrived when it has.

    A lane computes with a message before it sends what comes later in its list, so a message from it shows that it has
    had everything that it used before. A backend need not be asked, and no acknowledgement is sent.
    """
    proves: dict[Action, list[Action]] = {}
    used: dict[int, list[Action]] = defaultdict(list)  # by neighbour: own SENDs it has computed with
    for peer in sorted(_neighbours(schedule, lane)):
        for action in schedule.lanes[peer]:
            sent = _input_of(schedule, action, peer)
            if sent is not None and schedule.lane_of(sent.stage, sent.microbatch) == lane:
                used[peer].append(sent)
            elif action.kind in _SENDS and schedule.peer(action) == lane:
                received = schedule.counterpart(action)
                assert received is not None
                proves[received] = used.pop(peer, [])
    return proves


def _neighbours(schedule: Schedule, lane: int) -> set[int]:
    """The lanes that `lane` sends to or receives from."""
    peers = {schedule.peer(action) for action in schedule.lanes[lane]}
    return {peer for peer in peers if peer is not None}


def _input_of(schedule: Schedule, action: Action, lane: int) -> Action | None:
    """The SEND of another lane whose message a compute action waits for."""
    stage, mb, routes = action.stage, action.microbatch, schedule.routes
    if action.kind is Kind.F:
        source, kind = routes.before(stage, mb), Kind.SEND_F
    elif action.kind in (Kind.B, Kind.I):
        source, kind = routes.after(stage, mb), Kind.SEND_B
    else:
        return None
    if source is None or schedule.lane_of(source, mb) == lane:
        return None
    return Action(source, kind, mb)
