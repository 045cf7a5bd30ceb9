"""What the ring-shaped datapaths share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainsys.comm.datapath import Send
from trainsys.comm.wires import Wires


def around(ring: Sequence[int], slices: int, parts: Sequence[int]) -> Iterator[Send]:
    """The `parts` of all members of `ring` once around it: part k of hop h is sent in step ``h · len(parts) + k``."""
    n = len(ring)
    for hop in range(n - 1):
        for k, part in enumerate(parts):
            for place in range(n):
                source = ring[(place - hop) % n]
                yield Send(hop * len(parts) + k, source * slices + part, ring[place], ring[(place + 1) % n])


def check_slices(method: str, slices: int, rings: int = 1) -> int:
    """`slices`, or `rings` for 0. Raises ValueError for a number that does not suit so many rings."""
    if slices < 0 or slices % rings:
        raise ValueError(f"slices={slices} of the datapath {method} must be a multiple of {rings}, its rings")
    return slices or rings


def check_pairs(method: str, wires: Wires) -> None:
    """Raises ValueError unless every rank reaches every other."""
    n = wires.num_ranks
    if len(wires.routes) < n * (n - 1):
        pair = next((a, b) for a in range(n) for b in range(n) if a != b and (a, b) not in wires.routes)
        raise ValueError(
            f"the datapath {method} needs a way between all ranks; {wires.name} has none from {pair[0]} to {pair[1]}; "
            "take synthesis"
        )


def by_host(wires: Wires) -> list[list[int]]:
    """The ranks of each host."""
    return [[r for r in range(wires.num_ranks) if wires.hosts[r] == host] for host in sorted(set(wires.hosts))]


def equal_hosts(method: str, wires: Wires) -> list[list[int]]:
    """`by_host`. Raises ValueError for one host or hosts of different sizes."""
    hosts = by_host(wires)
    if len(hosts) < 2 or len({len(ranks) for ranks in hosts}) > 1:
        sizes = [len(ranks) for ranks in hosts]
        raise ValueError(f"the datapath {method} needs 2 or more hosts with equally many ranks; {wires.name}: {sizes}")
    return hosts
