"""The cluster as a graph: which node a rank is on, and how fast every pair of ranks is connected. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from trainsys.config import ClusterConfig, DeviceConfig
from trainsys.other_devices import check_other_devices

if TYPE_CHECKING:
    from trainsys.comm.links import Links


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
    """`num_ranks` devices, numbered node by node: rank r is on node ``r // ranks_per_node``.

    `placed` makes a view in which ranks have other numbers: whoever asks by positions of a mesh need not know where
    they are.

    Attributes:
        name: of the cluster.
        nodes: machines that hold at least one of the ranks.
        ranks_per_node: devices of a full node; the last node may have fewer.
        num_ranks: devices in all.
        device: what each of them is, but for `others`.
        intra_node, inter_node: links within a node, and between nodes.
        links: measured ones, which win over both.
        devices: the rank behind each number; empty: its own.
        others: (first node, device) of each run of nodes with another device than the run before.
    """

    name: str
    nodes: int
    ranks_per_node: int
    num_ranks: int
    device: DeviceConfig
    intra_node: Link
    inter_node: Link
    links: Links | None = None
    devices: tuple[int, ...] = ()
    others: tuple[tuple[int, DeviceConfig], ...] = ()

    @classmethod
    def from_config(cls, cluster: ClusterConfig, num_ranks: int | None = None, devices: Sequence[int] = ()) -> Topology:
        """The declared cluster, or its first `num_ranks` ranks, or those of `devices` in that order.

        Raises:
            ValueError: for an empty cluster, more ranks than it has, or links that cannot be.
        """
        if devices:
            whole = cls.from_config(cluster)
            if max(devices) >= whole.num_ranks or min(devices) < 0 or len(set(devices)) < len(devices):
                raise ValueError(
                    f"parallel.devices={list(devices)} must name different ones of the ranks 0 to {whole.num_ranks - 1}"
                )
            return whole.placed(devices)
        for name in ("nodes", "ranks_per_node"):
            if getattr(cluster, name) < 1:
                raise ValueError(f"cluster.{name}={getattr(cluster, name)} must be at least 1")
        for name, link in (("intra_node", cluster.intra_node), ("inter_node", cluster.inter_node)):
            if link.gbps <= 0 or link.latency_s < 0:
                raise ValueError(
                    f"cluster.{name}: gbps={link.gbps:g}, latency_s={link.latency_s:g}; "
                    "a link needs gbps > 0 and latency_s >= 0"
                )
        check_other_devices(cluster)
        links = None
        if cluster.links.given:
            from trainsys.comm.links import measured_links

            links = measured_links(cluster)
        size = cluster.nodes * cluster.ranks_per_node
        num_ranks = size if num_ranks is None else num_ranks
        if not 1 <= num_ranks <= size:
            raise ValueError(
                f"{num_ranks} ranks asked of cluster {cluster.name}, which has {size}; "
                f"use 1 to {size}, or raise cluster.nodes={cluster.nodes}"
            )
        nodes = -(-num_ranks // cluster.ranks_per_node)
        return cls(
            name=cluster.name,
            nodes=nodes,
            ranks_per_node=cluster.ranks_per_node,
            num_ranks=num_ranks,
            device=cluster.device,
            intra_node=Link(cluster.intra_node.gbps, cluster.intra_node.latency_s),
            inter_node=Link(cluster.inter_node.gbps, cluster.inter_node.latency_s),
            links=links,
            others=_runs_of_others(cluster, nodes),
        )

    def placed(self, devices: Sequence[int]) -> Topology:
        """The same cluster with number i for rank ``devices[i]``; others are not part of it."""
        assert not self.devices, self.devices
        assert len(set(devices)) == len(devices), devices
        assert all(0 <= rank < self.num_ranks for rank in devices), (devices, self.num_ranks)
        return replace(self, devices=tuple(devices), num_ranks=len(devices))

    @property
    def regular(self) -> bool:
        """Whether all devices are equal and links are even."""
        return self.even_links and not self.others

    @property
    def even_links(self) -> bool:
        """Whether a link depends only on whether its ends share a node, and nodes hold neighbouring numbers."""
        return self.links is None and not self.devices

    def device_of(self, rank: int) -> DeviceConfig:
        """What `rank` is."""
        node = self.node_of(rank)
        return next((device for first, device in reversed(self.others) if node >= first), self.device)

    def runs_of_devices(self) -> tuple[tuple[range, DeviceConfig], ...]:
        """Ranks that follow each other and have equal devices, in the cluster's own numbers."""
        firsts = [0, *(first * self.ranks_per_node for first, _ in self.others)]
        size = self.nodes * self.ranks_per_node if self.devices else self.num_ranks
        kinds = [self.device, *(device for _, device in self.others)]
        return tuple(
            (range(first, end), kind) for first, end, kind in zip(firsts, [*firsts[1:], size], kinds, strict=True)
        )

    def node_of(self, rank: int) -> int:
        """Node that holds `rank`."""
        return self._rank(rank) // self.ranks_per_node

    def _rank(self, number: int) -> int:
        assert 0 <= number < self.num_ranks, (number, self.num_ranks)
        return self.devices[number] if self.devices else number

    def same_node(self, a: int, b: int) -> bool:
        return self.node_of(a) == self.node_of(b)

    def link(self, a: int, b: int) -> Link:
        """The link from rank `a` to rank `b`; a != b."""
        assert a != b, f"rank {a} has no link to itself"
        if self.links is not None:
            return Link(*self.links.between(self._rank(a), self._rank(b)))
        return self.intra_node if self.same_node(a, b) else self.inter_node

    def transfer_s(self, a: int, b: int, num_bytes: float) -> float:
        """Seconds to send `num_bytes` from `a` to `b`; 0 from a rank to itself."""
        return 0.0 if a == b else self.link(a, b).transfer_s(num_bytes)

    def slowest(self, ranks: Iterable[int]) -> Link | None:
        """What holds up a collective over `ranks`: the lowest bandwidth and the highest latency among their links.

        None for a group of one, which needs no link.
        """
        members = sorted(set(map(self._rank, ranks)))
        if len(members) < 2:
            return None
        if self.links is not None:
            return Link(*self.links.slowest(members))
        nodes = [rank // self.ranks_per_node for rank in members]
        kinds = []
        if any(a == b for a, b in pairwise(nodes)):
            kinds.append(self.intra_node)
        if nodes[0] != nodes[-1]:
            kinds.append(self.inter_node)
        return Link(min(k.gbps for k in kinds), max(k.latency_s for k in kinds))

    def direct(self, ranks: Iterable[int]) -> Link | None:
        """What holds up an exchange in which each of `ranks` sends every other an equal part, all at once: the link
        over which a ring would take as long.

        What goes to other nodes leaves over the sender's own share of the adapters, beside what stays in the node, but
        in all no rank sends faster than over its fastest link.
        """
        members = tuple(dict.fromkeys(ranks))
        if self.links is None:
            return self.direct_over(*self._spread(members))
        slowest = self.slowest(members)
        if slowest is None:
            return None
        parts_s = self.links.direct([self._rank(rank) for rank in members])
        return Link((len(members) - 1) / parts_s, slowest.latency_s)

    def direct_over(self, count: int, most: int, fewest: int) -> Link | None:
        """`direct` over declared links, of `count` ranks: `most` of them in one node, `fewest` in another."""
        if count < 2:
            return None
        kinds = self._kinds(count, most)
        inside, away = (most - 1) / self.intra_node.gbps, (count - fewest) / self.inter_node.gbps
        parts_s = max(inside, away, (count - 1) / max(kind.gbps for kind in kinds))
        return Link((count - 1) / parts_s, max(kind.latency_s for kind in kinds))

    def ring(self, ranks: Iterable[int], abreast: bool = True) -> Link | None:
        """What holds up a ring collective over `ranks`: as `slowest`, but between two nodes all of a node's members
        send at once, each over its own share of the adapters. A pair uses one share, a ring through whole nodes all.

        Of measured links only those count that a ring in the order of `ranks`, node after node, goes over.

        Args:
            abreast: False for a backend that makes one ring only.
        """
        members = tuple(dict.fromkeys(ranks))
        if self.links is None:
            return self.ring_over(*self._spread(members), abreast)
        if len(members) < 2:
            return None
        return Link(*self.links.ring([self._rank(rank) for rank in members], abreast))

    def ring_over(self, count: int, most: int, fewest: int, abreast: bool = True) -> Link | None:
        """`ring` over declared links, of `count` ranks: `most` of them in one node, `fewest` in another."""
        if count < 2:
            return None
        near = [self.intra_node.gbps] * (most > 1)
        far = [self.inter_node.gbps * (fewest if abreast else 1)] * (count > most)
        return Link(min(near + far), max(kind.latency_s for kind in self._kinds(count, most)))

    def _spread(self, members: Sequence[int]) -> tuple[int, int, int]:
        """How many `members` there are, and how many in the nodes that hold most and fewest of them."""
        per_node = Counter(map(self.node_of, members)).values()
        return len(members), max(per_node, default=0), min(per_node, default=0)

    def _kinds(self, count: int, most: int) -> list[Link]:
        """The declared links among `count` ranks, of which a node holds `most`."""
        return [self.intra_node] * (most > 1) + [self.inter_node] * (count > most)

    def describe(self) -> str:
        """One line: ``dgx-h100-4: 4 nodes × 8 H100 (72 GiB), 370 GB/s within a node, 40 GB/s between``."""
        if self.others and not self.devices:
            kinds = [f"{self._nodes(len(ranks))} {_said(device)}" for ranks, device in self.runs_of_devices()]
        else:
            kinds = [f"{self._nodes(self.num_ranks)} {_said(self.device)}"]
        links = [f"{self.intra_node.gbps:g} GB/s within a node"]
        if self.links is not None:
            links = ["measured links"] if self.links.ranks_per_row == 1 else links
            if self.nodes > 1:
                links.append("{:.3g} to {:.3g} GB/s between nodes".format(*self.links.range_between_nodes(self.nodes)))
        elif self.nodes > 1:
            links.append(f"{self.inter_node.gbps:g} GB/s between")
        return f"{self.name}: {' + '.join(kinds)}, {', '.join(links)}"

    def _nodes(self, num_ranks: int) -> str:
        full, rest = divmod(num_ranks, self.ranks_per_node)
        parts = [f"{full} node{'s'[: full != 1]} × {self.ranks_per_node}"] if full else []
        return " + ".join(parts + ([f"1 node × {rest}"] if rest else []))


def _said(device: DeviceConfig) -> str:
    return f"{device.name} ({device.memory_gib:g} GiB)"


def _runs_of_others(cluster: ClusterConfig, nodes: int) -> tuple[tuple[int, DeviceConfig], ...]:
    """`Topology.others` of the first `nodes` nodes."""
    before, runs = cluster.device, list[tuple[int, DeviceConfig]]()
    first = cluster.nodes - sum(other.nodes for other in cluster.other_devices)
    for other in cluster.other_devices:
        if other.device != before and first < nodes:
            runs.append((first, other.device))
        before, first = other.device, first + other.nodes
    return tuple(runs)
