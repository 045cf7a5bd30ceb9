"""A network laboratory on one machine: a network namespace for each rank, joined by a bridge, every link with a rate.

Rates are those of a topology: what one rank sends to another is held to the rate of that link, and all that it sends to
(and receives from) other nodes together to the fastest of those links, as if over one adapter. Latency is what the
kernel and gloo have; it is not shaped. A namespace belongs to the process of its rank and goes with it, however that
ends, so that nothing is left behind.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

from trainsys.comm.topology import Topology
from trainsys.testing import RankPool

_NEW_NET = 0x40000000  # CLONE_NEWNET of sched.h
_TOOLS = ("ip", "tc", "nsenter", "unshare")
_MTU = 9000  # headers then take less than 1 % of a rate
_SEGMENT = 16384  # bytes: what the kernel hands on at once
_BURST = 8192  # bytes that pass unshaped after a pause, beside a segment; timers keep the rate with so few
_NICE = -15  # ranks that mostly wait shall wake in time, whatever else the machine does


def missing() -> str:
    """Why there can be no laboratory here, in a few words; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if lacking:
        return f"no {', '.join(lacking)} on this machine"
    probe = ["unshare", "-n", "tc", "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"no htb in a network namespace: {' '.join(done.stderr.split())}" if done.returncode else ""


class Lab:
    """Ranks on shaped links; use it in a ``with`` statement.

    Args:
        topology: of as many ranks as there shall be, at most 250.

    Raises:
        RuntimeError: there can be none here (`missing` says so beforehand), or a command failed.
    """

    def __init__(self, topology: Topology) -> None:
        assert 1 <= topology.num_ranks <= 250, topology.num_ranks
        why = missing()
        if why:
            raise RuntimeError(f"no network laboratory: {why}")
        self.topology = topology
        self._pool = RankPool()

    def __enter__(self) -> Lab:
        try:
            *ranks, switch = self._pool.run(_into_own_network, self.topology.num_ranks + 1)
            self._wire(ranks, switch)
        except BaseException:
            self._pool.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.close()

    def run(self, body: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """``body(rank, world_size, store, *args)`` on every rank, as `RankPool.run`, with gloo on the shaped links.

        An error of a rank ends the laboratory with all its processes.
        """
        return self._pool.run(_on_shaped_links, self.topology.num_ranks, body, args, timeout_s=timeout_s)

    def _wire(self, ranks: list[int], switch: int) -> None:
        """Connect the namespaces of these processes."""
        _ip(switch, ["link set lo up", "link add name bridge0 type bridge", "link set bridge0 up"])
        for rank, pid in enumerate(ranks):
            size = f"mtu {_MTU} gso_max_size {_SEGMENT}"
            _ip(
                pid,
                [
                    "link set lo up",
                    f"link add name net0 type veth peer name port{rank} netns {switch}",
                    f"link set net0 {size}",
                    f"addr add {_address(rank)}/24 dev net0",
                    "link set net0 up",
                ],
            )
            _ip(switch, [f"link set port{rank} {size} master bridge0", f"link set port{rank} up"])
            _tc(pid, self._shape("net0", rank, sends=True))
            _tc(switch, self._shape(f"port{rank}", rank, sends=False))

    def _shape(self, device: str, rank: int, sends: bool) -> Iterable[str]:
        """Commands of tc for what `rank` sends, or for what it receives."""
        topology = self.topology
        peers = [peer for peer in range(topology.num_ranks) if peer != rank]
        rate = {p: topology.link(*((rank, p) if sends else (p, rank))).gbps * 1e9 for p in peers}
        away = [p for p in peers if not topology.same_node(rank, p)]
        yield f"qdisc add dev {device} root handle 1: htb"
        if away:
            yield f"class add dev {device} parent 1: classid 1:1 {_htb(max(rate[p] for p in away))}"
        for peer in peers:
            number = f"1:{peer + 16:x}"
            least = rate[peer] / len(away) if peer in away else rate[peer]
            parent = "1:1" if peer in away else "1:"
            yield f"class add dev {device} parent {parent} classid {number} {_htb(least, rate[peer])}"
            match = f"match ip {'dst' if sends else 'src'} {_address(peer)}/32"
            yield f"filter add dev {device} parent 1: protocol ip u32 {match} flowid {number}"


def _htb(rate: float, most: float | None = None) -> str:
    """A class of `rate` bytes per second that may borrow up to `most`."""
    bits = f"rate {rate * 8:.0f}bit ceil {(most or rate) * 8:.0f}bit"
    return f"htb {bits} burst {_BURST} cburst {_BURST} quantum {_SEGMENT}"


def _address(rank: int) -> str:
    return f"10.199.0.{rank + 1}"


def _ip(pid: int, commands: Iterable[str]) -> None:
    _batch(pid, "ip", commands)


def _tc(pid: int, commands: Iterable[str]) -> None:
    _batch(pid, "tc", commands)


def _batch(pid: int, tool: str, commands: Iterable[str]) -> None:
    """Run commands in the namespace of process `pid`."""
    said = "\n".join(commands)
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", tool, "-batch", "-"], input=said, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"no network laboratory: {tool}: {' '.join(done.stderr.split())}")


def _into_own_network(rank: int, world_size: int, store: Any) -> int:
    """Leave the machine's network for an empty one of this process; returns its number."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # ranks of a pool run in batches, and wake up late
    try:
        os.nice(_NICE)
    except PermissionError:
        pass  # more noise
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NET):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    return os.getpid()


def _on_shaped_links(rank: int, world_size: int, store: Any, body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ["GLOO_SOCKET_IFNAME"] = "net0"
    return body(rank, world_size, store, *args)
