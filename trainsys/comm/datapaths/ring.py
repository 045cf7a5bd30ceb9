"""One ring that walks every host once: each link carries everything, so it suits a port per rank (a star)."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapaths.rings import around, by_host, check_slices
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """n-1 hops. More `slices` than 1 only help where links differ.

    Raises:
        ValueError: where neighbours of the ring have no way between them.
    """
    n, slices = wires.num_ranks, check_slices("ring", slices)
    order = [rank for ranks in by_host(wires) for rank in ranks]
    for a, b in zip(order, order[1:] + order[:1], strict=True):
        if n > 1 and (a, b) not in wires.routes:
            raise ValueError(f"the datapath ring needs a way from {a} to {b}, which {wires.name} lacks; take synthesis")
    return Datapath.of("ring", n, slices, around(order, slices, range(slices)))
