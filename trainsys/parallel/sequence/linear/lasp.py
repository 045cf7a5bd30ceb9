"""LASP (Sun et al. 2024, arXiv:2404.02882): each rank waits for the whole state, adds its own, and hands it on.

The least traffic and the longest wait: P - 1 states one after another. It is All-Scan with one block.
"""

from __future__ import annotations

from torch import Tensor

from trainsys.parallel.sequence.linear.all_scan import all_scan
from trainsys.parallel.sequence.linear.scan import Line


def lasp(line: Line, state: Tensor, transition: Tensor) -> Tensor:
    return all_scan(line, state, transition, blocks=1)
