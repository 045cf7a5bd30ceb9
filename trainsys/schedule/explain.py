"""Why a schedule is refused: one line that names the lane and the action, or the cycle in which lanes wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainsys.schedule.actions import COUNTERPART, VOCABULARY, Action, Kind
from trainsys.schedule.gates import first_stages, needed
from trainsys.schedule.schedule import Schedule

_BACKWARD = (Kind.B, Kind.I)
_BEFORE = {  # what a kind needs of its own work, on its own lane
    Kind.B: (Kind.F,),
    Kind.I: (Kind.F,),
    Kind.W: (Kind.I,),
    Kind.R: (Kind.F,),
    Kind.SEND_F: (Kind.F,),
    Kind.SEND_B: _BACKWARD,
    Kind.OFFLOAD: (Kind.F,),
    Kind.RELOAD: (Kind.OFFLOAD,),
    Kind.T: (Kind.S,),
}
_AFTER = {Kind.R: _BACKWARD, Kind.OFFLOAD: (Kind.R, *_BACKWARD)}  # what it must come before
_HALVES = frozenset({Kind.B, Kind.I, Kind.W})


def refused(schedule: Schedule, lane: int, place: int) -> str:
    """Why the action at `place` of `lane`, the first one that is wrong there, is wrong."""
    actions = schedule.lanes[lane]
    action, past, own = actions[place], actions[:place], dict[Kind, Action]()
    for other in actions:
        if (other.stage, other.microbatch) == (action.stage, action.microbatch):
            own.setdefault(other.kind, other)
    kind, reason = action.kind, ""
    if action in past:
        reason = f"{action} appears twice"
    elif kind in VOCABULARY and schedule.vocabulary == "ends":
        reason = f"{action} (place {place}) has no part of the vocabulary: it is at the ends"
    elif kind in VOCABULARY and action.stage not in first_stages(schedule, action.microbatch):
        reason = f"{action} (place {place}) does not belong to the first stage of its lane"
    elif kind in COUNTERPART and schedule.peer(action) is None:
        reason = f"{action} (place {place}) has no stage at its other end"
    elif kind in COUNTERPART and schedule.peer(action) == lane:
        reason = f"{action} (place {place}) sends to its own lane"
    elif kind in _HALVES and Kind.B in own and own.keys() & {Kind.I, Kind.W}:
        reason = f"{own[Kind.B]} stands beside its own halves I and W"
    else:
        late = [own[k] for k in _AFTER.get(kind, ()) if own.get(k) in past]
        reason = f"{action} comes after {late[0]}" if late else _unmet(schedule, lane, action, own, past)
    return f"lane {lane}: {reason}"


def _unmet(schedule: Schedule, lane: int, action: Action, own: Mapping[Kind, Action], past: Sequence[Action]) -> str:
    """What `action` needs and has not got: of its own work, or the tensor that its lane should have."""
    kinds = _BEFORE.get(action.kind, ())
    if kinds and not any(own.get(kind) in past for kind in kinds):
        needed = next((own[kind] for kind in kinds if kind in own), None)
        name = Kind.I if kinds == _BACKWARD and Kind.W in own else kinds[0]
        return _not_yet(action, needed, Action(action.stage, name, action.microbatch))
    if Kind.OFFLOAD in own and own.get(Kind.RELOAD) not in past and own[Kind.OFFLOAD] in past:
        return _not_yet(action, own.get(Kind.RELOAD), Action(action.stage, Kind.RELOAD, action.microbatch))
    receive = Action(action.stage, Kind.RECV_F if action.kind is Kind.F else Kind.RECV_B, action.microbatch)
    if schedule.peer(receive) != lane:
        return _not_yet(action, own.get(receive.kind), receive)
    send = schedule.counterpart(receive)
    assert send is not None, f"{action} is at the end of its path"
    makers = (Kind.F,) if send.kind is Kind.SEND_F else _BACKWARD
    producers = [Action(send.stage, kind, send.microbatch) for kind in makers]
    here = [producer for producer in producers if producer in schedule.lanes[lane]]
    return _not_yet(action, here[0] if here else None, producers[0])


def _not_yet(action: Action, needed: Action | None, name: Action) -> str:
    """`action` precedes `needed`, or lacks it altogether."""
    if needed is not None:
        return f"{action} comes before {needed}"
    return f"{name} is missing" if name.is_compute else f"{action} has no {name}"


def unfinished(schedule: Schedule, work: int, absent: Sequence[Kind]) -> str:
    """What a work lacks at the end of its lane; `absent` holds I and W for a missing B."""
    stage, mb = divmod(work, schedule.routes.num_microbatches)
    lane = schedule.lane_of(stage, mb)
    own = {a.kind for a in schedule.lanes[lane] if (a.stage, a.microbatch) == (stage, mb)}
    kind = absent[0]
    if kind is Kind.I:
        kind = Kind.B
    missing = Action(stage, kind, mb)
    if missing.is_compute:
        return f"lane {lane}: {missing} is missing"
    maker = Kind.F if kind is Kind.SEND_F else Kind.B if Kind.B in own else Kind.I
    return f"lane {lane}: {Action(stage, maker, mb)} has no {missing}"


def waiting(schedule: Schedule, waits: Mapping[int, Action]) -> str:
    """The cycle of lanes that wait for each other, or the lane that waits for something nobody will send.

    Args:
        waits: of each lane that has not ended, the action whose input is on its way from another lane.
    """
    source = {lane: _source(schedule, action, waits) for lane, action in waits.items()}
    lane, path = min(waits), list[int]()
    while lane in waits and lane not in path:
        path.append(lane)
        lane = source[lane]
    cycle = path[path.index(lane) :] if lane in path else path
    text = []
    for at in cycle:
        action = waits[at]
        wanted = _passes_before(schedule, action, source[at])
        value = wanted.kind.value if wanted else "F" if action.kind is Kind.F else "B"
        text.append(f"lane {at} waits at {action} for {value} of microbatch {action.microbatch} from lane {source[at]}")
    end = "cyclic wait" if lane in path else f"lane {lane} has ended"
    return f"{end}: {'; '.join(text)}"


def _passes_before(schedule: Schedule, action: Action, lane: int) -> Action | None:
    """What `action` waits for on `lane` because of the passes of the vocabulary."""
    if schedule.vocabulary == "ends":
        return None
    wanted = [kinds[0] for kinds in needed(schedule, action)]
    return next((a for a in wanted if schedule.lane_of(a.stage, a.microbatch) == lane), None)


def _source(schedule: Schedule, action: Action, waits: Mapping[int, Action]) -> int:
    """The lane that makes the input of an F, B or I, or what E, S, T or G needs: of several one that has not."""
    wanted = needed(schedule, action) if schedule.vocabulary != "ends" else []
    if wanted:
        lanes = [schedule.lane_of(any_of[0].stage, any_of[0].microbatch) for any_of in wanted]
        late = [lane for lane, any_of in zip(lanes, wanted, strict=True) if _is_late(schedule, lane, any_of, waits)]
        return (late or lanes)[0]
    receive = Action(action.stage, Kind.RECV_F if action.kind is Kind.F else Kind.RECV_B, action.microbatch)
    lane = schedule.peer(receive)
    assert lane is not None, f"{action} waits for nothing"
    return lane


def _is_late(schedule: Schedule, lane: int, any_of: Sequence[Action], waits: Mapping[int, Action]) -> bool:
    """Whether a lane has none of `any_of`, or waits before it."""
    places = [schedule.lanes[lane].index(a) for a in any_of if a in schedule.lanes[lane]]
    return not places or (lane in waits and schedule.lanes[lane].index(waits[lane]) <= places[0])
