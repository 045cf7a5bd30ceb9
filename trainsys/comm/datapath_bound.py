"""The least time that any datapath could take on wires: what must enter a set of ranks, over what leads into it.

Every set of ranks and switches gives a bound; the greatest of those looked at is returned. With up to 16 nodes these
are all, so it is the minimal cut; beyond, single ranks and hosts, each alone or with its own switches, and all others.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from trainsys.comm.wires import Wires

ALL_SETS = 16  # nodes up to which all sets are looked at


def bound_s(wires: Wires, nbytes_per_member: float, collective: str = "all_gather") -> float:
    """Seconds, without latency, of an all-gather or reduce-scatter of `nbytes_per_member`; an all-reduce is both.

    Args:
        nbytes_per_member: what each member contributes to an all-gather, and has after a reduce-scatter.

    Raises:
        ValueError: for another collective.
    """
    if collective == "all_reduce":
        return bound_s(wires, nbytes_per_member) + bound_s(wires, nbytes_per_member, "reduce_scatter")
    if collective not in ("all_gather", "reduce_scatter"):
        raise ValueError(f"no bound for collective={collective!r}; take all_gather, reduce_scatter or all_reduce")
    if wires.num_ranks < 2:
        return 0.0
    nodes = _num_nodes(wires)
    sets = _all_sets(nodes) if nodes <= ALL_SETS else _some_sets(wires, nodes)
    edges = np.array(list(wires.links))
    rates = np.array([link.gbps * 1e9 for link in wires.links.values()])
    a, b = edges.T if collective == "all_gather" else edges.T[::-1]
    worst = 0.0
    for some in np.array_split(sets, max(1, len(sets) * len(edges) // 2**22)):
        into = (some[:, b] & ~some[:, a]) @ rates
        inside = some[:, : wires.num_ranks].sum(1)
        counts = (inside > 0) & (inside < wires.num_ranks)
        with np.errstate(divide="ignore"):
            times = (wires.num_ranks - inside[counts]) * nbytes_per_member / into[counts]
        worst = max(worst, float(times.max(initial=0.0)))
    return worst


def _num_nodes(wires: Wires) -> int:
    return 1 + max(wires.num_ranks - 1, *(max(edge) for edge in wires.links))


def _all_sets(nodes: int) -> NDArray[np.bool_]:
    return (np.arange(2**nodes)[:, None] >> np.arange(nodes) & 1).astype(bool)


def _some_sets(wires: Wires, nodes: int) -> NDArray[np.bool_]:
    ranks = [{rank} for rank in range(wires.num_ranks)]
    hosts = [{r for r, h in enumerate(wires.hosts) if h == host} for host in sorted(set(wires.hosts))]
    beside: dict[int, set[int]] = {node: set() for node in range(nodes)}
    for x, y in wires.links:
        beside[x].add(y)
        beside[y].add(x)
    return np.array(list(_with_switches(wires, ranks + hosts, beside)))


def _with_switches(wires: Wires, sets: list[set[int]], beside: dict[int, set[int]]) -> Iterable[NDArray[np.bool_]]:
    """Each set alone; with the switches whose only ranks are its own; and all but these."""
    switches = range(wires.num_ranks, len(beside))
    ranks_at = {s: {node for node in beside[s] if node < wires.num_ranks} for s in switches}
    for some in sets:
        own = {s for s in switches if ranks_at[s] and ranks_at[s] <= some}
        for members in (some, some | own):
            row = np.zeros(len(beside), dtype=bool)
            row[list(members)] = True
            yield row
            yield ~row
