"""A leaf-spine network on one machine: a network namespace per host, leaf and spine, links between leaves and spines
with a rate. What a connection's addresses are decides which spine it takes, as in data centres.

Every host has an address per spine, which the network leads over that spine, both ways; and one more that the leaves
hash by addresses and ports over all spines (ECMP, by the kernel). Latency and the hosts' own links are not shaped.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainsys.comm.traffic import LeafSpine
from trainsys.testing import namespaces
from trainsys.testing.laboratory import Laboratory
from trainsys.testing.namespaces import htb, ip, sent, tc
from trainsys.testing.namespaces import missing as missing

_SETTINGS = {
    "ip_forward": "1",
    "conf/all/rp_filter": "0",
    "conf/default/rp_filter": "0",
    "fib_multipath_hash_policy": "1",  # ports too
    "tcp_rmem": "4096 131072 1048576",
    "tcp_no_metrics_save": "1",
}


class SpineLab(Laboratory):
    """Hosts on such a network.

    Args:
        network: at most 200 hosts, leaves and spines.
    """

    def __init__(self, network: LeafSpine) -> None:
        super().__init__(network.num_hosts, network.spine(network.spines), _SETTINGS)
        assert self.num_nodes <= 200, self.num_nodes
        self.network = network

    def uplinks(self) -> dict[tuple[int, int], int]:
        """Bytes that have gone up each (leaf, spine), both as nodes."""
        spines = range(self.network.spine(0), self.num_nodes)
        counts = {leaf: sent(self.pids[leaf]) for leaf in self._leaves}
        return {(leaf, spine): counts[leaf][f"to{spine}"][0] for leaf in self._leaves for spine in spines}

    @property
    def _leaves(self) -> range:
        return range(self.network.num_hosts, self.network.spine(0))

    def _lay(self) -> None:
        self._connect(sorted(edge for edge in self.network.gbps if edge[0] < edge[1]), self._home)
        for node, pid in enumerate(self.pids):
            ip(pid, self._ways(node))
            tc(pid, self._rates(node))

    def _home(self, node: int) -> list[str]:
        names = self._addresses(node)
        return ["link add home type bridge", *(f"addr add {name}/32 dev home" for name in names), "link set home up"]

    def _addresses(self, node: int) -> list[str]:
        if node < self.network.num_hosts:
            return [address(plane, node) for plane in range(self.network.spines + 1)]
        return [namespaces.address(node)]

    def _ways(self, node: int) -> Iterable[str]:
        """Commands of ip: by destination alone."""
        network, planes = self.network, range(self.network.spines + 1)
        for host in range(network.num_hosts):
            leaf = network.leaf(host)
            for plane in planes:
                there = f"route add {address(plane, host)}/32"
                if node < network.num_hosts:
                    if node != host:
                        yield f"{there} {_over(network.leaf(node))} src {address(plane, node)}"
                elif node == leaf:
                    yield f"{there} dev to{host}"
                elif node >= network.spine(0):
                    yield f"{there} {_over(leaf)}"
                elif plane < network.spines:
                    yield f"{there} {_over(network.spine(plane))}"
                else:
                    yield f"{there} " + " ".join(f"nexthop {_over(network.spine(s))}" for s in range(network.spines))

    def _rates(self, node: int) -> Iterable[str]:
        """Commands of tc: the rate of each link from here between leaf and spine."""
        for (a, b), gbps in self.network.gbps.items():
            if a == node and min(a, b) >= self.network.num_hosts:
                yield f"qdisc add dev to{b} root handle 1: htb default 1"
                yield f"class add dev to{b} parent 1: classid 1:1 {htb(gbps * 1e9)}"


def address(plane: int, host: int) -> str:
    """Of a host; `plane` is the spine that leads there, or their number where leaves hash."""
    return f"10.{200 + plane}.0.{host + 1}"


def cut(pid: int, spine: int) -> None:
    """End the link from the leaf of process `pid` to node `spine`."""
    ip(pid, [f"link set to{spine} down"])


def _over(node: int) -> str:
    return f"via {namespaces.address(node)} dev to{node} onlink"
