"""Sequence parallelism of linear attention: contiguous parts, of which each needs one state from those before it.

A method of scanning is one file and one line below. Each is made for the wires among the ranks, by cp index.
"""

from collections.abc import Callable

from trainsys.comm.wires import Wires
from trainsys.parallel.sequence.linear.all_scan import for_wires
from trainsys.parallel.sequence.linear.auto import auto
from trainsys.parallel.sequence.linear.lasp import lasp
from trainsys.parallel.sequence.linear.lasp2 import lasp2, lasp2_direct
from trainsys.parallel.sequence.linear.scan import Method

SCANS: dict[str, Callable[[Wires], Method]] = {
    "auto": auto,
    "all_scan": for_wires,
    "lasp": lambda wires: lasp,
    "lasp2": lambda wires: lasp2,
    "lasp2_direct": lambda wires: lasp2_direct,
}
