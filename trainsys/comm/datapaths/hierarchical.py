"""Hierarchical: directly inside hosts; rings between ranks of equal place; and what came by them, directly inside."""

from __future__ import annotations

from trainsys.comm.datapath import Datapath, Send
from trainsys.comm.datapaths.rings import check_pairs, check_slices, equal_hosts
from trainsys.comm.datapaths.two_level import best_slices
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """All three at once, slice by slice; as many slices as `two_level` takes, unless told.

    Raises:
        ValueError: for one host, unequal hosts, or where a pair has no way between.
    """
    hosts = equal_hosts("hierarchical", wires)
    check_pairs("hierarchical", wires)
    slices = check_slices("hierarchical", slices or best_slices(wires, hosts))
    sends = []
    for host, ranks in enumerate(hosts):
        for place, source in enumerate(ranks):
            for part in range(slices):
                chunk = source * slices + part
                for hop in range(len(hosts)):
                    here = hosts[(host + hop) % len(hosts)]
                    step = hop * slices + part
                    if hop + 1 < len(hosts):
                        there = hosts[(host + hop + 1) % len(hosts)]
                        sends.append(Send(step, chunk, here[place], there[place]))
                    sends += [Send(step, chunk, here[place], other) for other in here if other != here[place]]
    return Datapath.of("hierarchical", wires.num_ranks, slices, sends)
