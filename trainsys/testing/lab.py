"""A network laboratory on one machine: a network namespace for each rank, joined by a bridge, every link with a rate.

Rates are those of a topology: what one rank sends to another is held to the rate of that link, and all that it sends to
(and receives from) other nodes together to the fastest of those links, as if over one adapter. Latency is what the
kernel and gloo have; it is not shaped. A namespace belongs to the process of its rank and goes with it, however that
ends, so that nothing is left behind.
"""

from __future__ import annotations

from collections.abc import Iterable

from trainsys.comm.topology import Topology
from trainsys.testing.laboratory import DEVICE, Laboratory
from trainsys.testing.namespaces import address, htb, ip, tc
from trainsys.testing.namespaces import missing as missing


class Lab(Laboratory):
    """Ranks on links held to the rates of a topology.

    Args:
        topology: of as many ranks as there shall be, at most 250.
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology.num_ranks, topology.num_ranks + 1)
        assert 1 <= topology.num_ranks <= 250, topology.num_ranks
        self.topology = topology

    def _lay(self) -> None:
        *ranks, switch = self.pids
        ip(switch, ["link set lo up", "link add name bridge0 type bridge", "link set bridge0 up"])
        for rank, pid in enumerate(ranks):
            ip(
                pid,
                [
                    "link set lo up",
                    f"link add name net0 type veth peer name port{rank} netns {switch}",
                    f"link set net0 {DEVICE}",
                    f"addr add {address(rank)}/24 dev net0",
                    "link set net0 up",
                ],
            )
            ip(switch, [f"link set port{rank} {DEVICE} master bridge0", f"link set port{rank} up"])
            tc(pid, self._shape("net0", rank, sends=True))
            tc(switch, self._shape(f"port{rank}", rank, sends=False))

    def _shape(self, device: str, rank: int, sends: bool) -> Iterable[str]:
        """Commands of tc for what `rank` sends, or for what it receives."""
        topology = self.topology
        peers = [peer for peer in range(topology.num_ranks) if peer != rank]
        rate = {p: topology.link(*((rank, p) if sends else (p, rank))).gbps * 1e9 for p in peers}
        away = [p for p in peers if not topology.same_node(rank, p)]
        yield f"qdisc add dev {device} root handle 1: htb"
        if away:
            yield f"class add dev {device} parent 1: classid 1:1 {htb(max(rate[p] for p in away))}"
        for peer in peers:
            number = f"1:{peer + 16:x}"
            least = rate[peer] / len(away) if peer in away else rate[peer]
            parent = "1:1" if peer in away else "1:"
            yield f"class add dev {device} parent {parent} classid {number} {htb(least, rate[peer])}"
            match = f"match ip {'dst' if sends else 'src'} {address(peer)}/32"
            yield f"filter add dev {device} parent 1: protocol ip u32 {match} flowid {number}"
