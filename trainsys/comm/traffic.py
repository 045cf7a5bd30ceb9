"""Which path each flow takes where there are several, e.g. one per spine of a leaf-spine network. Imports no torch.

Switches hash: each flow takes a path by chance, and where two large ones meet, the collective waits for both. Large
flows of training are few and known beforehand, so they can be placed (C4P: Dong et al. 2024, arXiv:2406.04594).
Placed by LPT (Graham 1969): the largest first, each where the busiest link of its path is the least busy; then flows of
the busiest link move or change places while that helps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from trainsys.comm.wires import Edge

Path = tuple[Edge, ...]
Placement = tuple[int, ...]  # of each flow, the number of its path


class Flow(NamedTuple):
    """What host `src` sends to host `dst`: bytes, or bytes per second."""

    src: int
    dst: int
    load: float


@dataclass(frozen=True)
class LeafSpine:
    """Hosts 0 … n-1 under leaves, every leaf linked with every spine: nodes n …, then the leaves, then the spines.

    Attributes:
        host_gbps: of each host's link to its leaf, GB/s in each direction.
        spine_gbps: of each link between a leaf and a spine.
    """

    num_hosts: int
    hosts_per_leaf: int
    spines: int
    host_gbps: float
    spine_gbps: float

    @property
    def leaves(self) -> int:
        return -(-self.num_hosts // self.hosts_per_leaf)

    def leaf(self, host: int) -> int:
        """The node above `host`."""
        return self.num_hosts + host // self.hosts_per_leaf

    def spine(self, number: int) -> int:
        """The node of spine `number`."""
        return self.num_hosts + self.leaves + number

    @property
    def gbps(self) -> dict[Edge, float]:
        """Of every direction of every link, GB/s."""
        up = {(host, self.leaf(host)): self.host_gbps for host in range(self.num_hosts)}
        leaves = range(self.num_hosts, self.num_hosts + self.leaves)
        up |= {(leaf, self.spine(s)): self.spine_gbps for leaf in leaves for s in range(self.spines)}
        return up | {(b, a): gbps for (a, b), gbps in up.items()}

    def paths(self, flow: Flow) -> list[Path]:
        """One per spine, in their order; one alone within a leaf."""
        up, down = self.leaf(flow.src), self.leaf(flow.dst)
        if up == down:
            return [((flow.src, up), (up, flow.dst))]
        tops = map(self.spine, range(self.spines))
        return [((flow.src, up), (up, top), (top, down), (down, flow.dst)) for top in tops]


class Network:
    """Flows, the paths that each may take, and how busy links are; `take` and `leave` keep count.

    Args:
        gbps: of each edge, GB/s.
    """

    def __init__(self, flows: Sequence[Flow], paths: Sequence[Sequence[Path]], gbps: Mapping[Edge, float]) -> None:
        self.flows, self.paths, self._gbps = flows, paths, gbps
        self.chosen = [-1] * len(flows)
        self._load: dict[Edge, float] = {}
        self.on: dict[Edge, set[int]] = {}

    def busy(self, edge: Edge) -> float:
        """Seconds that its load takes it (of loads in bytes per second: the part of its rate)."""
        return self._load.get(edge, 0.0) / (self._gbps[edge] * 1e9)

    def most(self, edges: Iterable[Edge]) -> float:
        """Of the busiest of `edges`."""
        return max(map(self.busy, edges), default=0.0)

    def take(self, flow: int, path: int) -> None:
        """Put a flow on one of its paths, away from where it is."""
        self.leave(flow)
        self.chosen[flow] = path
        for edge in self.paths[flow][path]:
            self._load[edge] = self._load.get(edge, 0.0) + self.flows[flow].load
            self.on.setdefault(edge, set()).add(flow)

    def leave(self, flow: int) -> None:
        """Take a flow off its path, if it has one."""
        if self.chosen[flow] < 0:
            return
        for edge in self.paths[flow][self.chosen[flow]]:
            self.on[edge].remove(flow)
            self._load[edge] -= self.flows[flow].load
            if not self.on[edge]:
                self._load[edge] = 0.0  # nothing is left of rounding either
        self.chosen[flow] = -1

    def busiest(self) -> tuple[float, Edge | None]:
        """The busiest link that some flow could avoid, and how busy it is."""
        avoidable = [edge for edge, flows in self.on.items() if any(len(self.paths[f]) > 1 for f in flows)]
        edge = max(avoidable, key=self.busy, default=None)
        return (0.0, None) if edge is None else (self.busy(edge), edge)


def place(flows: Sequence[Flow], paths: Sequence[Sequence[Path]], gbps: Mapping[Edge, float]) -> Placement:
    """A path for each flow, such that the busiest link is as little busy as can be found.

    Args:
        paths: of each flow, those that it may take.
        gbps: of each edge, GB/s.

    Raises:
        ValueError: a flow has no path.
    """
    network = Network(flows, paths, gbps)
    _spread(network, range(len(flows)), [range(len(options)) for options in paths])
    while _better(network):
        pass
    return tuple(network.chosen)


def replan(
    placement: Placement,
    flows: Sequence[Flow],
    paths: Sequence[Sequence[Path]],
    gbps: Mapping[Edge, float],
    dead: Collection[Edge],
) -> Placement:
    """The placement once the edges `dead` are gone: only flows that took one of them move, each as `place` begins.

    Raises:
        ValueError: a flow has no path left.
    """
    network = Network(flows, paths, gbps)
    left = [[i for i, path in enumerate(options) if not set(path) & set(dead)] for options in paths]
    moves = [flow for flow, path in enumerate(placement) if path not in left[flow]]
    for flow in set(range(len(flows))) - set(moves):
        network.take(flow, placement[flow])
    _spread(network, moves, left)
    return tuple(network.chosen)


def hashed(paths: Sequence[Sequence[Path]], seed: int) -> Placement:
    """What switches do that hash addresses and ports (ECMP): each flow takes any of its paths."""
    draw = Random(seed)
    return tuple(draw.randrange(len(options)) for options in paths)


def busiest(
    placement: Placement, flows: Sequence[Flow], paths: Sequence[Sequence[Path]], gbps: Mapping[Edge, float]
) -> float:
    """Seconds that the busiest link is busy."""
    network = Network(flows, paths, gbps)
    for flow, path in enumerate(placement):
        network.take(flow, path)
    return network.most(network.on)


def _spread(network: Network, flows: Iterable[int], allowed: Sequence[Sequence[int]]) -> None:
    """LPT. Of equally good paths the one with the least load in all is taken."""
    for flow in sorted(flows, key=lambda f: (-network.flows[f].load, f)):
        if not allowed[flow]:
            src, dst, _ = network.flows[flow]
            raise ValueError(f"no path is left from host {src} to host {dst}; leave one of the two out")
        scored = []
        for path in allowed[flow]:
            network.take(flow, path)
            edges = network.paths[flow][path]
            scored.append((network.most(edges), sum(map(network.busy, edges)), path))
        network.take(flow, min(scored)[2])


def _better(network: Network) -> bool:
    """Relieve the busiest link by one move, or else one exchange; False where neither helps."""
    most, edge = network.busiest()
    if edge is None:
        return False
    for flow in sorted(network.on[edge]):
        for path in range(len(network.paths[flow])):
            if edge not in network.paths[flow][path] and _helps(network, {flow: path}, most):
                return True
    for flow in sorted(network.on[edge]):
        for path, edges in enumerate(network.paths[flow]):
            if edge in edges:
                continue
            others = {other for e in edges for other in network.on.get(e, ()) if other != flow}
            for other in sorted(others):
                for way in range(len(network.paths[other])):
                    if way != network.chosen[other] and _helps(network, {flow: path, other: way}, most):
                        return True
    return False


def _helps(network: Network, moves: Mapping[int, int], most: float) -> bool:
    """Make the moves if all links that they touch are less busy than `most` then; the sorted loads then fall."""
    before = {flow: network.chosen[flow] for flow in moves}
    touched = {e for flow in moves for e in network.paths[flow][before[flow]]}
    for flow, path in moves.items():
        touched |= set(network.paths[flow][path])
        network.take(flow, path)
    stuck = {e for flow in moves for e in set.intersection(*map(set, network.paths[flow]))}
    if network.most(touched - stuck) < most * (1 - 1e-9):
        return True
    for flow, path in before.items():
        network.take(flow, path)
    return False
