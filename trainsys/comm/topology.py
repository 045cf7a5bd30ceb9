"""The cluster as a graph: which node a rank is on, and how fast every pair of ranks is connected. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from trainsys.config import ClusterConfig, DeviceConfig


@dataclass(frozen=True)
class Link:
    """One direction between two ranks under the α-β model (Hockney 1994): ``latency_s + bytes / (gbps · 1e9)``."""

    gbps: float  # GB/s, 1e9 bytes per second
    latency_s: float

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds until `num_bytes` have arrived."""
        return self.latency_s + num_bytes / (self.gbps * 1e9)


@dataclass(frozen=True)
class Topology:
    """`num_ranks` equal devices, numbered node by node: rank r is on node ``r // ranks_per_node``.

    Everything is asked per pair of ranks, through `link`; a measured matrix of links needs no other method.

    Attributes:
        name: of the cluster.
        nodes: machines that hold at least one of the ranks.
        ranks_per_node: devices of a full node; the last node may have fewer.
        num_ranks: devices in all.
        device: what each of them is.
        intra_node, inter_node: links within a node, and between nodes.
    """

    name: str
    nodes: int
    ranks_per_node: int
    num_ranks: int
    device: DeviceConfig
    intra_node: Link
    inter_node: Link

    regular = True  # all links within nodes are equal, and all between them: groups that lie alike are alike

    @classmethod
    def from_config(cls, cluster: ClusterConfig, num_ranks: int | None = None) -> Topology:
        """The declared cluster, or its first `num_ranks` ranks.

        Raises:
            ValueError: for an empty cluster, more ranks than it has, or a link without bandwidth.
        """
        for name in ("nodes", "ranks_per_node"):
            if getattr(cluster, name) < 1:
                raise ValueError(f"cluster.{name}={getattr(cluster, name)} must be at least 1")
        for name, link in (("intra_node", cluster.intra_node), ("inter_node", cluster.inter_node)):
            if link.gbps <= 0 or link.latency_s < 0:
                raise ValueError(
                    f"cluster.{name}: gbps={link.gbps:g}, latency_s={link.latency_s:g}; "
                    "a link needs gbps > 0 and latency_s >= 0"
                )
        size = cluster.nodes * cluster.ranks_per_node
        num_ranks = size if num_ranks is None else num_ranks
        if not 1 <= num_ranks <= size:
            raise ValueError(
                f"{num_ranks} ranks asked of cluster {cluster.name}, which has {size}; "
                f"use 1 to {size}, or raise cluster.nodes={cluster.nodes}"
            )
        return cls(
            name=cluster.name,
            nodes=-(-num_ranks // cluster.ranks_per_node),
            ranks_per_node=cluster.ranks_per_node,
            num_ranks=num_ranks,
            device=cluster.device,
            intra_node=Link(cluster.intra_node.gbps, cluster.intra_node.latency_s),
            inter_node=Link(cluster.inter_node.gbps, cluster.inter_node.latency_s),
        )

    def node_of(self, rank: int) -> int:
        """Node that holds `rank`."""
        assert 0 <= rank < self.num_ranks, (rank, self.num_ranks)
        return rank // self.ranks_per_node

    def same_node(self, a: int, b: int) -> bool:
        return self.node_of(a) == self.node_of(b)

    def link(self, a: int, b: int) -> Link:
        """The link from rank `a` to rank `b`; a != b."""
        assert a != b, f"rank {a} has no link to itself"
        return self.intra_node if self.same_node(a, b) else self.inter_node

    def transfer_s(self, a: int, b: int, num_bytes: float) -> float:
        """Seconds to send `num_bytes` from `a` to `b`; 0 from a rank to itself."""
        return 0.0 if a == b else self.link(a, b).transfer_s(num_bytes)

    def slowest(self, ranks: Iterable[int]) -> Link | None:
        """What holds up a collective over `ranks`: the lowest bandwidth and the highest latency among their links.

        None for a group of one, which needs no link.
        """
        members = sorted(set(ranks))
        if len(members) < 2:
            return None
        kinds = []
        if any(self.same_node(a, b) for a, b in pairwise(members)):
            kinds.append(self.intra_node)
        if not self.same_node(members[0], members[-1]):
            kinds.append(self.inter_node)
        return Link(min(k.gbps for k in kinds), max(k.latency_s for k in kinds))

    def ring(self, ranks: Iterable[int]) -> Link | None:
        """What holds up a ring collective over `ranks`: as `slowest`, but between two nodes all of a node's members
        send at once, each over its own share of the adapters. A pair uses one share, a ring through whole nodes all.
        """
        members = sorted(set(ranks))
        slowest = self.slowest(members)
        if slowest is None or self.same_node(members[0], members[-1]):
            return slowest
        per_node = Counter(map(self.node_of, members))
        rates = [self.inter_node.gbps * min(per_node.values())]
        if max(per_node.values()) > 1:
            rates.append(self.intra_node.gbps)
        return Link(min(rates), slowest.latency_s)

    def describe(self) -> str:
        """One line: ``dgx-h100-4: 4 nodes × 8 H100 (72 GiB), 450 GB/s within a node, 50 GB/s between``."""
        full, rest = divmod(self.num_ranks, self.ranks_per_node)
        parts = [f"{full} node{'s'[: full != 1]} × {self.ranks_per_node}"] if full else []
        parts += [f"1 node × {rest}"] if rest else []
        links = f"{self.intra_node.gbps:g} GB/s within a node"
        if self.nodes > 1:
            links += f", {self.inter_node.gbps:g} GB/s between"
        return f"{self.name}: {' + '.join(parts)} {self.device.name} ({self.device.memory_gib:g} GiB), {links}"
