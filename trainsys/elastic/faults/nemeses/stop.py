"""SIGSTOP: the process freezes with its sockets open, as a machine does that hangs."""

from __future__ import annotations

import os
import signal

from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.nemesis import Nemesis, Victim


def strike(event: FaultEvent, victim: Victim) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


STOP = Nemesis(
    "stop@STEP:RANK|manager[:PHASE]", "the process freezes (SIGSTOP)", strike, fatal=True, changes=True, of_manager=True
)
