"""A zombie: SIGSTOP, and SIGCONT when the others have gone on without it. See `faults.zombies` for the second half."""

from __future__ import annotations

from trainsys.elastic.faults.nemeses.stop import strike
from trainsys.elastic.faults.nemesis import Nemesis

WAKE = Nemesis(
    "wake@STEP:RANK[:PHASE]", "the process freezes, nobody kills it, and it wakes up after its eviction", strike,
    fatal=True, changes=True, local=True,
)  # fmt: skip
