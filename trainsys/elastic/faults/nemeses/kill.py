"""SIGKILL: the process is gone at once, and its sockets close."""

from __future__ import annotations

import os
import signal

from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.nemesis import Nemesis, Victim


def strike(event: FaultEvent, victim: Victim) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


KILL = Nemesis(
    "kill@STEP:RANK|manager[:PHASE]", "the process ends (SIGKILL)", strike, fatal=True, changes=True, of_manager=True
)
