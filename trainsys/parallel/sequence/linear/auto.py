"""The method that is soonest on the wires there are (`comm.scan_time.choose`)."""

from __future__ import annotations

from torch import Tensor

from trainsys.comm.scan_time import choose
from trainsys.comm.wires import Wires
from trainsys.parallel.sequence.linear.all_scan import all_scan, most_blocks
from trainsys.parallel.sequence.linear.lasp2 import lasp2_direct
from trainsys.parallel.sequence.linear.scan import Line, Method


def auto(wires: Wires) -> Method:
    """All-Scan, or everybody's state at once to all who want it."""

    def method(line: Line, state: Tensor, transition: Tensor) -> Tensor:
        choice = choose(wires, state.nbytes, transition.nbytes, most_blocks(state, transition))
        if choice.method == "lasp2_direct":
            return lasp2_direct(line, state, transition)
        return all_scan(line, state, transition, choice.blocks)

    return method
