"""A slow rank: after each forward and backward it sleeps in proportion to what that took. See `faults.slowness`."""

from __future__ import annotations

from trainsys.elastic.faults.nemesis import Nemesis

SLOW = Nemesis("slow@STEP:RANK:xN[:STEPS]", "the rank computes N times slower, for so many steps", tail="scale")
