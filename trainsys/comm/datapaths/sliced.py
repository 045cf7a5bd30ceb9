"""Sliced direct: `direct`, a slice a step, so that what came in a step can be used during the next."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapaths.direct import in_slices
from trainsys.comm.datapaths.rings import check_slices
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """n-1 slices unless another number is asked for. Raises ValueError where a pair has no way between."""
    return in_slices("sliced", wires, check_slices("sliced", slices or max(wires.num_ranks - 1, 1)))
