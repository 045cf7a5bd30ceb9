"""A schedule of faults as text: read, sorted by step, and refused where it cannot happen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from trainsys.elastic.faults.event import IN_A_CHANGE, MANAGER_PHASES, PHASES, FaultEvent
from trainsys.elastic.faults.registry import NEMESES

_SLOWEST = 1000  # times
_WHO = {"": r"", "rank": r":(?P<rank>\d+)", "pair": r":(?P<rank>\d+)\+(?P<peer>\d+)"}
_STEPS = r"(?::(?P<steps>\d+))?"
_TAIL = {"": r"", "phase": rf"(?::(?P<phase>[a-z]+){_STEPS})?", "scale": rf":x(?P<factor>\d+){_STEPS}"}


def parse_faults(text: str, world_size: int, steps: int) -> tuple[FaultEvent, ...]:
    """Parse ``"kill@17:2:backward,stop@30:0,cut@33:1+3,slow@35:1:x5:10,join@40"``.

    Args:
        world_size: ranks that the run begins with, spares among them; the first that joins has this number.

    Raises:
        ValueError: naming the item, for a form, rank, phase or step that cannot be.
    """
    events: list[FaultEvent] = []
    for item in (part.strip() for part in text.split(",")) if text.strip() else ():
        if not item:
            raise ValueError(f"faults.schedule={text} has an empty item; write such as kill@3:1,join@5")
        event = parse_fault(item)
        if event.step >= steps:
            raise ValueError(f"faults.schedule: {item!r} names step {event.step}, but the run has train.steps={steps}")
        phases, whose = (MANAGER_PHASES, " of the manager's") if event.of_manager else (PHASES, "")
        if event.phase not in phases:
            raise ValueError(f"faults.schedule: {item!r} names no phase{whose}; phases are {', '.join(phases)}")
        if NEMESES[event.kind].tail == "phase" and event.steps and event.phase not in IN_A_CHANGE:
            raise ValueError(f"faults.schedule: {item!r} waits for no change; leave out :{event.steps}")
        if NEMESES[event.kind].tail == "scale" and event.factor < 2:
            raise ValueError(f"faults.schedule: {item!r} makes nothing slower; write x2 or more")
        if event.factor > _SLOWEST:
            raise ValueError(f"faults.schedule: {item!r} would not end; write x{_SLOWEST} or less")
        if event.peer == event.rank >= 0:
            raise ValueError(f"faults.schedule: {item!r} names rank {event.rank} twice; name two ranks")
        events.append(event)
    _check_twice(events)
    events.sort(key=lambda e: e.step)
    _check_ranks(events, world_size)
    return tuple(events)


def parse_fault(item: str) -> FaultEvent:
    """One item, whatever the run. Raises ValueError for a form that is none."""
    kind = item.partition("@")[0]
    nemesis = NEMESES.get(kind)
    if nemesis is None:
        forms = ", ".join(nemesis.form for nemesis in NEMESES.values())
        raise ValueError(f"faults.schedule: {item!r} is not {forms}")
    who = _WHO[nemesis.who]
    if nemesis.of_manager:
        who = rf"(?:{who}|:(?P<manager>manager))"
    match = re.fullmatch(rf"{kind}@(?P<step>\d+){who}{_TAIL[nemesis.tail]}", item)
    if match is None:
        raise ValueError(f"faults.schedule: {item!r} is not {nemesis.form}")
    found = {name: value for name, value in match.groupdict().items() if value is not None}
    numbers = {name: int(found[name]) for name in ("step", "rank", "peer", "factor", "steps") if name in found}
    if numbers.get("steps") == 0:
        raise ValueError(f"faults.schedule: {item!r} lasts 0 steps; write 1 or more, or leave it out: to the end")
    phase = found.get("phase", "collect" if "manager" in found else "forward")
    return FaultEvent(kind, phase=phase, **numbers)


def _check_twice(events: Sequence[FaultEvent]) -> None:
    """No fault is there twice; only joins add up. Raises ValueError."""
    seen = set[FaultEvent]()
    for event in (e for e in events if e.kind != "join"):
        both_ways = event.kind == "cut" and event.peer < event.rank  # 3+1 is the cut 1+3
        same = replace(event, rank=event.peer, peer=event.rank) if both_ways else event
        if same in seen:
            raise ValueError(f"faults.schedule: {event} is there twice and strikes once; leave one out")
        seen.add(same)


def _check_ranks(events: Sequence[FaultEvent], world_size: int) -> None:
    """Every victim may exist by then, nobody dies twice, and somebody is left. Raises ValueError."""
    started, gone = world_size, set[int]()
    for event in events:
        started += event.kind == "join"
        for rank in (r for r in (event.rank, event.peer) if r >= 0):
            if rank >= started:
                raise ValueError(f"faults.schedule: {event} names rank {rank}, but ranks are 0 to {started - 1} then")
            if rank in gone:
                raise ValueError(f"faults.schedule: {event} strikes rank {rank} a second time; name another rank")
        if NEMESES[event.kind].fatal and event.rank >= 0:
            gone.add(event.rank)
        if len(gone) == started:
            raise ValueError(f"faults.schedule: {event} leaves none of {started} rank{'s'[: started != 1]}; name fewer")
