"""Any wires on one machine: a network namespace per rank and per switch, a veth pair for each link, with its rates.

Where a `Lab` holds pairs to a rate, here each wire is held to its own: messages that share one share its rate, evenly
by pairs of ranks, and what passes several is forwarded by the switches between. It is real TCP. Latency is what the
kernel and gloo have; it is not shaped.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainsys.comm.wires import Edge, Wires
from trainsys.testing.laboratory import HEADERS, Laboratory
from trainsys.testing.namespaces import address, htb, ip, sent, tc
from trainsys.testing.namespaces import missing as missing

_SETTINGS = {
    "ip_forward": "1",
    "conf/all/rp_filter": "0",
    "conf/default/rp_filter": "0",
    "tcp_congestion_control": "reno",
    "tcp_slow_start_after_idle": "0",
    "tcp_rmem": "4096 131072 1048576",  # what lies in a queue: no more than it holds
    "tcp_early_retrans": "0",  # nothing is lost; probes would only add to what is counted
    "tcp_no_metrics_save": "1",
}


class WiresLab(Laboratory):
    """Ranks on such wires.

    Args:
        wires: of at most 250 ranks and switches. A wire of infinite rate is not shaped, nor is one that can hold up
            nothing because all that passes it passes a slower one too.
    """

    emulated = False

    def __init__(self, wires: Wires) -> None:
        super().__init__(
            wires.num_ranks,
            1 + max(node for edge in [*wires.links, (wires.num_ranks - 1, 0)] for node in edge),
            _SETTINGS,
        )
        assert 1 <= self.num_nodes <= 250, self.num_nodes
        self.wires = wires
        self._before: dict[Edge, tuple[int, int]] = {}

    def mark(self) -> None:
        """Count from now on."""
        self._before = self._sent()

    def counters(self) -> dict[Edge, int]:
        """Bytes of payload that went over each edge since the last `mark`, or the beginning."""
        found = {}
        for edge, (count, packets) in self._sent().items():
            count_before, packets_before = self._before.get(edge, (0, 0))
            found[edge] = max(0, count - count_before - HEADERS * (packets - packets_before))
        return found

    def _sent(self) -> dict[Edge, tuple[int, int]]:
        devices = [sent(pid) for pid in self.pids]
        return {(a, b): devices[a][f"to{b}"] for a, b in self.wires.links}

    def _lay(self) -> None:
        self._connect(sorted({(min(edge), max(edge)) for edge in self.wires.links}), _home)
        for node, pid in enumerate(self.pids):
            ip(pid, self._ways(node))
            tc(pid, self._rates(node))

    def _ways(self, node: int) -> Iterable[str]:
        """Commands of ip: where `node` sends what, by source and destination, for ways need not be trees."""
        ranks = range(self.wires.num_ranks)
        if node in ranks:
            for end in ranks:
                if (node, end) in self.wires.routes:
                    yield f"route add {address(end)}/32 {_over(self.wires.routes[node, end][0])} src {address(node)}"
            return
        sources = set()
        for (source, end), way in self.wires.routes.items():
            for edge in way:
                if edge[0] == node:
                    sources.add(source)
                    yield f"route add {address(end)}/32 {_over(edge)} table {1000 + source}"
        for source in sorted(sources):
            yield f"rule add from {address(source)}/32 table {1000 + source}"

    def _rates(self, node: int) -> Iterable[str]:
        """Commands of tc: the rate of each wire away from `node`, and a queue of its own for each pair of ranks."""
        for (a, b), link in self.wires.links.items():
            pairs = [pair for pair, way in self.wires.routes.items() if (a, b) in way]
            if a != node or not pairs or holds_up_nothing(self.wires, (a, b)):
                continue
            device, rate = f"to{b}", link.gbps * 1e9
            yield f"qdisc add dev {device} root handle 1: htb"
            yield f"class add dev {device} parent 1: classid 1:1 {htb(rate, rate)}"
            for i, (source, end) in enumerate(pairs):
                yield f"class add dev {device} parent 1:1 classid 1:{i + 16:x} {htb(rate / len(pairs), rate)}"
                match = f"match ip src {address(source)}/32 match ip dst {address(end)}/32"
                yield f"filter add dev {device} parent 1: protocol ip u32 {match} flowid 1:{i + 16:x}"


def holds_up_nothing(wires: Wires, edge: Edge) -> bool:
    """Whether all that passes `edge` passes one other edge too that is slower (of equal ones the first counts)."""
    gbps = wires.links[edge].gbps
    if gbps == float("inf"):
        return True
    ways = [set(way) for way in wires.routes.values() if edge in way]
    common = set.intersection(*ways) if ways else set()
    return any((wires.links[other].gbps, other) < (gbps, edge) for other in common if other != edge)


def _over(edge: Edge) -> str:
    return f"via {address(edge[1])} dev to{edge[1]} onlink rto_min 1s"


def _home(node: int) -> list[str]:
    return ["link add net0 type bridge", f"addr add {address(node)}/32 dev net0", "link set net0 up"]
