"""How a mirror is kept: the ways there are, by the name in ``elastic.snapshot``."""

from __future__ import annotations

from trainsys.parallel.snapshots.copies import Technique
from trainsys.parallel.snapshots.delta import Delta
from trainsys.parallel.snapshots.full import Full
from trainsys.parallel.snapshots.replay import Replay

TECHNIQUES: dict[str, type[Technique]] = {"replay": Replay, "full": Full, "delta": Delta}
