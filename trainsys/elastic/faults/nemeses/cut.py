"""A partition of two ranks: the connections between them are shut down, once, both ways or one way.

Only those of the process groups that both are in; the way to the manager stays open.
"""

from __future__ import annotations

import socket

from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.nemesis import Nemesis, NothingThere, Victim, notes_of
from trainsys.elastic.faults.notes import process_of
from trainsys.elastic.faults.sockets import shut


def both_ways(event: FaultEvent, victim: Victim) -> None:
    _shut(event, victim, socket.SHUT_RDWR)


def one_way(event: FaultEvent, victim: Victim) -> None:
    _shut(event, victim, socket.SHUT_WR)


def _shut(event: FaultEvent, victim: Victim, how: int) -> None:
    pid = process_of(notes_of(victim), event.peer)
    if pid is None:
        raise NothingThere(f"rank {event.peer} has not announced itself")
    try:
        shut(victim.comm, event.peer, pid, how)
    except OSError as error:
        raise NothingThere(f"rank {event.peer} is gone: {error}") from None


CUT = Nemesis(
    "cut@STEP:RANK+PEER[:PHASE]", "the connections of two ranks break", both_ways, "pair", changes=True, local=True
)
ONEWAY = Nemesis(
    "oneway@STEP:RANK+PEER[:PHASE]", "what the first sends the second no longer arrives", one_way, "pair",
    changes=True, local=True,
)  # fmt: skip
