"""Network namespaces that belong to processes: a process leaves the machine's network, others wire up its own.

A namespace goes with the process that made it, however that ends, so that nothing is left behind.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

_NEW_NET = 0x40000000  # CLONE_NEWNET of sched.h
_TOOLS = ("ip", "tc", "nsenter", "unshare")
_NICE = -15  # ranks that mostly wait shall wake in time, whatever else the machine does

SEGMENT = 16384  # bytes: what the kernel hands on at once
BURST = 8192  # bytes that pass unshaped after a pause, beside a segment; timers keep the rate with so few


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


def ip(pid: int, commands: Iterable[str]) -> None:
    """Run commands of ip in the network of process `pid`. Raises RuntimeError where one fails."""
    _batch(pid, "ip", commands)


def tc(pid: int, commands: Iterable[str]) -> None:
    """Run commands of tc in the network of process `pid`. Raises RuntimeError where one fails."""
    _batch(pid, "tc", commands)


def _batch(pid: int, tool: str, commands: Iterable[str]) -> None:
    said = "\n".join(commands)
    done = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", tool, "-batch", "-"], input=said, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"no network laboratory: {tool}: {' '.join(done.stderr.split())}")


def into_own_network(rank: int, world_size: int, store: Any, settings: Mapping[str, str] | None = None) -> int:
    """Body of a rank: leave the machine's network for an empty one of this process; returns its number.

    Args:
        settings: of the new network, below ``/proc/sys/net/ipv4``.
    """
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # ranks of a pool run in batches, and wake up late
    try:
        os.nice(_NICE)
    except PermissionError:
        pass  # more noise
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NET):
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    for name, value in (settings or {}).items():
        Path("/proc/sys/net/ipv4", name).write_text(value)
    return os.getpid()


def sent(pid: int) -> dict[str, tuple[int, int]]:
    """Bytes and packets that each device has sent in the network of process `pid`."""
    found = {}
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]:
        device, _, numbers = line.partition(":")
        counts = numbers.split()
        found[device.strip()] = (int(counts[8]), int(counts[9]))
    return found


def htb(rate: float, most: float | None = None) -> str:
    """A class of `rate` bytes per second that may borrow up to `most`."""
    bits = f"rate {rate * 8:.0f}bit ceil {(most or rate) * 8:.0f}bit"
    return f"htb {bits} burst {BURST} cburst {BURST} quantum {SEGMENT}"


def address(node: int) -> str:
    """Of a namespace."""
    return f"10.199.0.{node + 1}"


def over_network(rank: int, world_size: int, store: Any, body: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Run a rank's body with gloo on the laboratory's links."""
    os.environ["GLOO_SOCKET_IFNAME"] = "net0"
    return body(rank, world_size, store, *args)
