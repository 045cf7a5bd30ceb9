"""The wires of a cluster: ranks and switches, each direction of a link with its rate, and the ways between ranks.

A `Topology` says how fast a pair is; wires say what pairs share. A mesh has a link per pair, a star a port per rank, a
cluster of two levels an uplink per host: which collective is fast follows from that. Imports no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from trainsys.comm.topology import Link

Edge = tuple[int, int]  # from node, to node: one direction of a link


@dataclass(frozen=True)
class Wires:
    """Nodes 0 … num_ranks-1 are ranks, higher numbers switches, which forward; ranks do not.

    Attributes:
        name: for people, e.g. ``mesh n=8``.
        links: of each edge; the two directions of a link are two edges and may differ.
        hosts: of each rank, the number of its host.
    """

    name: str
    num_ranks: int
    links: Mapping[Edge, Link]
    hosts: tuple[int, ...]

    @cached_property
    def routes(self) -> dict[Edge, tuple[Edge, ...]]:
        """The edges that a message from rank a to rank b takes: fewest hops, then the lowest numbers of nodes."""
        after: dict[int, list[int]] = {}
        for a, b in sorted(self.links):
            after.setdefault(a, []).append(b)
        return {
            (source, end): way
            for source in range(self.num_ranks)
            for end, way in self._ways(source, after).items()
            if end < self.num_ranks and end != source
        }

    def _ways(self, source: int, after: Mapping[int, list[int]]) -> dict[int, tuple[Edge, ...]]:
        """From one rank to every node, by breadth-first search through switches."""
        ways: dict[int, tuple[Edge, ...]] = {source: ()}
        queue = deque([source])
        while queue:
            node = queue.popleft()
            if node < self.num_ranks and node != source:
                continue
            for there in after.get(node, ()):
                if there not in ways:
                    ways[there] = (*ways[node], (node, there))
                    queue.append(there)
        return ways

    def link(self, a: int, b: int) -> Link:
        """What one message alone meets from rank a to rank b: the least rate on its way, latencies added up."""
        way = [self.links[edge] for edge in self.routes[a, b]]
        return Link(min(link.gbps for link in way), sum(link.latency_s for link in way))

    def turned(self) -> Wires:
        """Every link the other way round: a reduce-scatter on these wires is an all-gather on those, backwards."""
        return Wires(self.name, self.num_ranks, {(b, a): link for (a, b), link in self.links.items()}, self.hosts)

    def among(self, ranks: Iterable[int]) -> Wires:
        """The wires that `ranks` use among each other, who are numbered in that order."""
        members = list(ranks)
        number = {rank: i for i, rank in enumerate(members)}
        for node in sorted({node for edge in self.links for node in edge if node >= self.num_ranks}):
            number[node] = len(number)
        kept = {
            (number[a], number[b]): link for (a, b), link in self.links.items() if a in number and b in number
        }  # fmt: skip
        return Wires(self.name, len(members), kept, tuple(self.hosts[rank] for rank in members))


def mesh(num_ranks: int, gbps: float, latency_s: float = 0.0) -> Wires:
    """A link of its own between every two ranks."""
    pairs = {(a, b): Link(gbps, latency_s) for a in range(num_ranks) for b in range(num_ranks) if a != b}
    return Wires(f"mesh n={num_ranks}", num_ranks, pairs, (0,) * num_ranks)


def star(num_ranks: int, gbps: float, latency_s: float = 0.0) -> Wires:
    """One switch, and a port of `gbps` in each direction for every rank."""
    ports = {edge: Link(gbps, latency_s / 2) for r in range(num_ranks) for edge in ((r, num_ranks), (num_ranks, r))}
    return Wires(f"star n={num_ranks}", num_ranks, ports, (0,) * num_ranks)


def two_level(
    hosts: int, per_host: int, inside_gbps: float, uplink_gbps: float, nics: int = 1, latency_s: float = 0.0
) -> Wires:
    """Hosts whose ranks have a link per pair, and `nics` uplinks per host to one switch; rank i uses uplink i % nics.

    A rank reaches its uplink over a wire of the inner rate, which holds up nothing.
    """
    n, links = hosts * per_host, dict[Edge, Link]()
    top = n + hosts * nics
    for host in range(hosts):
        ranks = range(host * per_host, (host + 1) * per_host)
        links |= {(a, b): Link(inside_gbps, latency_s) for a in ranks for b in ranks if a != b}
        for nic in range(n + host * nics, n + (host + 1) * nics):
            links |= {edge: Link(uplink_gbps, latency_s) for edge in ((nic, top), (top, nic))}
        for rank in ranks:
            nic = n + host * nics + rank % per_host % nics
            links |= {edge: Link(inside_gbps, 0.0) for edge in ((rank, nic), (nic, rank))}
    return Wires(f"two-level {hosts}x{per_host}", n, links, tuple(r // per_host for r in range(n)))


def torus(shape: Sequence[int], gbps: float, latency_s: float = 0.0, wrap: bool = True) -> Wires:
    """A link to each neighbour along each axis; without `wrap` a grid with borders. Ranks are numbered row by row."""
    n, links = prod(shape), dict[Edge, Link]()
    for rank in range(n):
        stride = n
        for size in shape:
            stride //= size
            place = rank // stride % size
            if size > 1 and (wrap or place + 1 < size):
                there = rank + ((place + 1) % size - place) * stride
                links |= {(rank, there): Link(gbps, latency_s), (there, rank): Link(gbps, latency_s)}
    name = "x".join(map(str, shape))
    return Wires(f"{'torus' if wrap else 'grid'} {name}", n, links, (0,) * n)
