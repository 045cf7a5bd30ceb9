"""Hamiltonian paths inside hosts, joined to rings over hosts: each ring enters and leaves a host once.

After TASP's "(m-K_m-m)^u" (arXiv 2509.26541), with two things more: odd m from 7, and rails: where every other host
walks its paths backwards, each join is between equal places of the hosts, so that no message changes rails.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from trainsys.comm.datapaths.hamilton import Cycle, cycles, zigzag


@cache
def paths(m: int) -> tuple[Cycle, ...]:
    """m arc-disjoint Hamiltonian paths of K*_m, of which path i starts at i, and no two end at the same vertex.

    Even m by the zigzag, which ends at i + m/2. Odd m: with a hub between end and start they are m cycles of K*_{m+1},
    and the other way round.

    Raises:
        ValueError: for m=3 and m=5, where there are none.
    """
    if m in (3, 5):
        raise ValueError(f"{m} ranks of a host have no {m} disjoint Hamiltonian paths; take 2, 4 or 6 of them")
    if m == 1:
        return ((0,),)
    if m % 2 == 0:
        return tuple(zigzag(i, m) for i in range(m))
    cut = []
    for cycle in cycles(m + 1):
        hub = cycle.index(m)
        cut.append(cycle[hub + 1 :] + cycle[:hub])
    return tuple(sorted(cut))


def rings(hosts: int, m: int, rails: bool = True) -> tuple[Cycle, ...]:
    """m arc-disjoint rings of all ``hosts · m`` ranks, numbered host by host; m=1 is the ring of hosts.

    Args:
        hosts: at least 2.
        m: ranks of each host.
        rails: join ranks of equal place in their hosts. With an odd number of hosts the last join cannot.

    Raises:
        ValueError: for one host, and for m=3 and m=5.
    """
    if hosts < 2:
        raise ValueError(f"rings over hosts need 2 hosts; there {'is' if hosts == 1 else 'are'} {hosts}")
    found = []
    for path in paths(m):
        ways = [path[::-1] if rails and host % 2 else path for host in range(hosts)]
        found.append(tuple(host * m + place for host, way in enumerate(ways) for place in way))
    return tuple(found)


def joins(ring: Cycle, m: int) -> list[tuple[int, int]]:
    """(place left, place entered) of each step of `ring` from one host to another."""
    steps = pairwise((*ring, ring[0]))
    return [(a % m, b % m) for a, b in steps if a // m != b // m]
