"""All arc-disjoint rings of the complete graph at once, each with its part of every tensor: TASP (arXiv 2509.26541)."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapaths.hamilton import cycles
from trainsys.comm.datapaths.rings import around, check_pairs, check_slices
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """As many rings as there are (`cycles`), and a slice for each unless a multiple is asked for.

    Raises:
        ValueError: where a pair has no way between, or `slices` is no multiple of the rings.
    """
    n = wires.num_ranks
    if n == 1:
        return Datapath.of("k_ring", 1, max(slices, 1), ())
    check_pairs("k_ring", wires)
    found = cycles(n)
    slices = check_slices("k_ring", slices, len(found))
    sends = (
        send
        for i, ring in enumerate(found)
        for send in around(ring, slices, range(i, slices, len(found)))
    )  # fmt: skip
    return Datapath.of("k_ring", n, slices, sends)
