"""Everyone to everyone, whole tensors: one hop each, so it suits a link per pair (a mesh)."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath, Send
from trainsys.comm.datapaths.rings import check_pairs, check_slices
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """One slice and step unless more are asked for. Raises ValueError where a pair has no way between."""
    return in_slices("direct", wires, check_slices("direct", slices))


def in_slices(name: str, wires: Wires, slices: int) -> Datapath:
    """Step k: everyone sends its slice k to everyone, beginning with who comes next."""
    check_pairs(name, wires)
    n = wires.num_ranks
    sends = (
        Send(part, source * slices + part, source, (source + shift) % n)
        for part in range(slices)
        for source in range(n)
        for shift in range(1, n)
    )
    return Datapath.of(name, n, slices, sends)
