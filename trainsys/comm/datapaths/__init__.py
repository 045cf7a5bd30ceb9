"""Datapaths, one file each, by name. They import no torch."""

from __future__ import annotations

from collections.abc import Callable

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapaths import (
    direct,
    double_ring,
    hierarchical,
    k_ring,
    rail,
    ring,
    sliced,
    synthesis,
    two_level,
)
from trainsys.comm.wires import Wires

Generate = Callable[[Wires, int], Datapath]  # slices: 0 for the method's own best

DATAPATHS: dict[str, Generate] = {
    "ring": ring.generate,
    "k_ring": k_ring.generate,
    "direct": direct.generate,
    "sliced": sliced.generate,
    "two_level": two_level.generate,
    "rail": rail.generate,
    "hierarchical": hierarchical.generate,
    "double_ring": double_ring.generate,
    "synthesis": synthesis.generate,
}
