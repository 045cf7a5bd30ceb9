"""Which messages prove that others have arrived, and that few are held for long."""

from __future__ import annotations

import pytest

from trainsys.schedule import GENERATORS, Kind, Problem, Routes, Schedule, generate
from trainsys.schedule.delivered import delivered_by
from trainsys.space.runs import FOLDED

SENDS = (Kind.SEND_F, Kind.SEND_B)
RECVS = (Kind.RECV_F, Kind.RECV_B)


def made(name: str, depth: int, m: int, replicas: tuple[int, ...] = ()) -> Schedule:
    vp, folded = 2 if name in FOLDED or name == "interleaved" else 1, name in FOLDED
    return generate(name, Problem(Routes.balanced(m, replicas or (1,) * depth, vp, folded), vp, folded))


def most_held(schedule: Schedule, lane: int) -> int:
    """Sends whose tensors a lane holds at once, if a RECV's proof counts when its message is computed with."""
    proves, held, most = delivered_by(schedule, lane), set(), 0
    for action in schedule.lanes[lane]:
        if action.kind in SENDS:
            held.add(action)
            most = max(most, len(held))
        wanted = {Kind.F: Kind.RECV_F, Kind.B: Kind.RECV_B, Kind.I: Kind.RECV_B}.get(action.kind)
        for received, sent in proves.items():
            if wanted is received.kind and (received.stage, received.microbatch) == (action.stage, action.microbatch):
                assert held.issuperset(sent), "a message proves what was sent only later"
                held.difference_update(sent)
    return most


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ("gpipe", "bfs", "auto")])
def test_what_is_held_does_not_grow_with_the_step(name: str) -> None:
    short, long = made(name, 4, 16), made(name, 4, 48)
    for lane in range(4):
        assert most_held(long, lane) <= most_held(short, lane) <= 16


@pytest.mark.parametrize("name", ["1f1b", "zbv", "gpipe"])
def test_each_send_is_proven_once_and_by_its_receiver(name: str) -> None:
    schedule = made(name, 3, 9, (1, 3, 2))
    for lane in range(schedule.num_lanes):
        proves = delivered_by(schedule, lane)
        own = set(schedule.lanes[lane])
        assert proves.keys() == {a for a in own if a.kind in RECVS}
        sent = [send for sends in proves.values() for send in sends]
        assert len(sent) == len(set(sent)) and own.issuperset(sent)
        for received, sends in proves.items():
            assert {schedule.peer(send) for send in sends} <= {schedule.peer(received)}
