"""SIGUSR1: the notice that the rank's place will be taken away."""

from __future__ import annotations

import os
import signal

from trainsys.elastic.faults.event import FaultEvent
from trainsys.elastic.faults.nemesis import Nemesis, Victim


def strike(event: FaultEvent, victim: Victim) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


DRAIN = Nemesis("drain@STEP:RANK[:PHASE]", "the rank gets notice to leave (SIGUSR1)", strike, fatal=True, changes=True)
