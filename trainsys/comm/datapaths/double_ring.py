"""Double ring (LoongTrain, arXiv 2406.18485; BurstAttention): rings inside hosts, and one between the hosts.

What a host holds goes round inside while the next host's is on its way, so 1/w of the steps cross hosts.
"""

from __future__ import annotations

from trainsys.comm.datapath import Datapath, Send
from trainsys.comm.datapaths.rings import check_pairs, check_slices, equal_hosts
from trainsys.comm.wires import Wires


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """One slice unless told.

    Raises:
        ValueError: for one host, unequal hosts, or where a pair has no way between.
    """
    hosts = equal_hosts("double_ring", wires)
    check_pairs("double_ring", wires)
    slices, m = check_slices("double_ring", slices), len(hosts[0])
    sends = []
    for host, ranks in enumerate(hosts):
        for place, source in enumerate(ranks):
            for part in range(slices):
                chunk = source * slices + part
                for outer in range(len(hosts)):
                    here = hosts[(host + outer) % len(hosts)]
                    first = outer * max(m - 1, 1)
                    if outer + 1 < len(hosts):
                        there = hosts[(host + outer + 1) % len(hosts)]
                        sends.append(Send(first * slices + part, chunk, here[place], there[place]))
                    for inner in range(m - 1):
                        a, b = here[(place + inner) % m], here[(place + inner + 1) % m]
                        sends.append(Send((first + inner) * slices + part, chunk, a, b))
    return Datapath.of("double_ring", wires.num_ranks, slices, sends)
