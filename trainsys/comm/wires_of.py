"""The wires among some ranks of a cluster, as its topology declares or has measured them. Imports no torch.

Within a node ranks hang on a switch, a port of the declared rate each (NVSwitch), or every pair has a link (a mesh).
Between nodes every rank sends through its own share of the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from trainsys.comm.topology import Link, Topology
from trainsys.comm.wires import Edge, Wires

Fabric = Literal["switch", "mesh"]


def wires_of(topology: Topology, ranks: Sequence[int], fabric: Fabric = "switch") -> Wires:
    """Members are numbered in the order of `ranks`.

    Measured links stand between pairs; what a rank has to other nodes shares a port as fast as the fastest of them.
    """
    members, n = range(len(ranks)), len(ranks)
    nodes = [topology.node_of(rank) for rank in ranks]
    links: dict[Edge, Link] = {}
    near = [(a, b) for a in members for b in members if a != b and nodes[a] == nodes[b]]
    if fabric == "switch" and topology.links is None:
        for a, _ in near:
            hub, half = n + nodes[a], Link(topology.intra_node.gbps, topology.intra_node.latency_s / 2)
            links[a, hub] = links[hub, a] = half
    else:
        links |= {(a, b): topology.link(ranks[a], ranks[b]) for a, b in near}
    first = n + max(nodes) + 1  # of the ports: out of a member, into it; then what is between them
    away = [(a, b) for a in members for b in members if nodes[a] != nodes[b]]
    if topology.links is None:
        core = first + 2 * n
        for a in {a for a, _ in away}:
            port = Link(topology.inter_node.gbps, topology.inter_node.latency_s / 2)
            links |= {(a, first + a): Link(port.gbps, 0.0), (first + a, core): port, (core, first + a): port}
            links[first + a, a] = Link(port.gbps, 0.0)
    else:
        for a, b in away:
            links[first + a, first + n + b] = topology.link(ranks[a], ranks[b])
        for a in {a for a, _ in away}:
            out = max(links[first + x, first + n + y].gbps for x, y in away if x == a)
            into = max(links[first + x, first + n + y].gbps for x, y in away if y == a)
            links |= {(a, first + a): Link(out, 0.0), (first + n + a, a): Link(into, 0.0)}
    return Wires(f"{topology.name} n={n}", n, links, tuple(nodes))
