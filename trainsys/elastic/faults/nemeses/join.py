"""A fresh rank is started; the manager does it when the step before is committed."""

from __future__ import annotations

from trainsys.elastic.faults.nemesis import Nemesis

JOIN = Nemesis("join@STEP", "a fresh rank is started", who="", tail="", changes=True)
