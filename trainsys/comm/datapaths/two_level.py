"""Two levels: a chunk crosses to each other host once, and who receives it passes it to its neighbours.

Rank i of a host talks to rank i of the others, so that uplinks are loaded as ranks are spread over them. Slices keep
short what is left to do inside when the last byte has crossed.
"""

from __future__ import annotations

from math import ceil

from trainsys.comm.datapath import Datapath, Send
from trainsys.comm.datapaths.rings import by_host, check_pairs, check_slices
from trainsys.comm.wires import Wires

TAIL = 0.02  # of the time on the uplinks: what passing on the last slice may add
MOST_SLICES = 16


def generate(wires: Wires, slices: int = 0) -> Datapath:
    """As many slices as keep the tail under 2 %, unless told; one host is served directly.

    Raises:
        ValueError: where a pair has no way between.
    """
    check_pairs("two_level", wires)
    hosts = by_host(wires)
    slices = check_slices("two_level", slices or best_slices(wires, hosts))
    n = wires.num_ranks
    sends = []
    for host, ranks in enumerate(hosts):
        for place, source in enumerate(ranks):
            for part in range(slices):
                chunk = source * slices + part
                sends += [Send(part, chunk, source, other) for other in ranks if other != source]
                for away in range(1, len(hosts)):
                    there = hosts[(host + away) % len(hosts)]
                    # a smaller host takes the parts in turn
                    first = there[place] if place < len(there) else there[(place + part) % len(there)]
                    sends.append(Send(part, chunk, source, first))
                    sends += [Send(part + 1, chunk, first, other) for other in there if other != first]
    return Datapath.of("two_level", n, slices, sends)


def best_slices(wires: Wires, hosts: list[list[int]]) -> int:
    """So many that one slice inside a host takes at most `TAIL` of the time that all take across."""
    if len(hosts) < 2:
        return 1
    most = max(len(ranks) for ranks in hosts)
    across = max(1 / wires.link(a[0], b[0]).gbps for a in hosts for b in hosts if a is not b)
    inside = max((1 / wires.link(a, b).gbps for ranks in hosts for a in ranks for b in ranks if a != b), default=0.0)
    uplinks = len({wires.routes[rank, hosts[1][0]][:2][-1] for rank in hosts[0]})
    crossing = across * (wires.num_ranks - most) / max(uplinks, 1)
    return min(MOST_SLICES, max(1, ceil(inside / (TAIL * crossing))))
