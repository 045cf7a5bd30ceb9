"""The kinds of faults by name. A new one is a file in `nemeses` and a line here."""

from __future__ import annotations

from trainsys.elastic.faults.nemeses.cut import CUT, ONEWAY
from trainsys.elastic.faults.nemeses.drain import DRAIN
from trainsys.elastic.faults.nemeses.flip import FLIP
from trainsys.elastic.faults.nemeses.full import FULL
from trainsys.elastic.faults.nemeses.join import JOIN
from trainsys.elastic.faults.nemeses.kill import KILL
from trainsys.elastic.faults.nemeses.slow import SLOW
from trainsys.elastic.faults.nemeses.stop import STOP
from trainsys.elastic.faults.nemeses.wake import WAKE
from trainsys.elastic.faults.nemesis import Nemesis

NEMESES: dict[str, Nemesis] = {
    "kill": KILL,
    "stop": STOP,
    "wake": WAKE,
    "drain": DRAIN,
    "join": JOIN,
    "cut": CUT,
    "oneway": ONEWAY,
    "slow": SLOW,
    "flip": FLIP,
    "full": FULL,
}
