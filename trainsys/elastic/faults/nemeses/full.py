"""A full disk during the first checkpoint at or after a step. See `Injector.saving`."""

from __future__ import annotations

from trainsys.elastic.faults.nemesis import Nemesis

FULL = Nemesis("full@STEP", "nothing can be written in the next checkpoint", who="", tail="")
