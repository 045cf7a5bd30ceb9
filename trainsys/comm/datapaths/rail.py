"""Rings over hosts from Hamiltonian paths inside: all links inside, and every uplink by the rank it belongs to."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapaths.paths import rings
from trainsys.comm.datapaths.rings import around, check_pairs, check_slices, equal_hosts
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """As many rings as a host has ranks, a slice for each unless a multiple is asked for.

    Raises:
        ValueError: for one host, unequal hosts, hosts of 3 or 5 ranks, or `slices` that is no multiple of the rings.
    """
    hosts = equal_hosts("rail", wires)
    check_pairs("rail", wires)
    m = len(hosts[0])
    slices = check_slices("rail", slices, m)
    ranks = [rank for host in hosts for rank in host]
    sends = (
        send
        for i, ring in enumerate(rings(len(hosts), m))
        for send in around([ranks[place] for place in ring], slices, range(i, slices, m))
    )
    return Datapath.of("rail", wires.num_ranks, slices, sends)
