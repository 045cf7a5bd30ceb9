"""Which ranks keep copies for which: peers in order, on distinct nodes as far as there are nodes.

Wang et al. 2023 (Gemini, SOSP), §4.1 place the copies of a machine on the next ones around a ring. Here the ring goes
round ranks and alternates nodes, so that all ranks of a node have peers elsewhere, and with equal nodes everybody keeps
equally much for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Pairs = tuple[tuple[int, int], ...]


def mirrors(ranks: Sequence[int], node_of: Callable[[int], int], tolerate: int = 1) -> Pairs:
    """(rank, peer): `tolerate` peers for every rank, the first first; fewer where there are not so many others.

    A peer is the next one around the ring on the node that keeps fewest copies of the rank, its own included.
    """
    seen: dict[int, int] = {}
    order = []
    for rank in sorted(ranks):
        depth = seen.setdefault(node_of(rank), 0)
        seen[node_of(rank)] += 1
        order.append((depth, rank))
    ring = [rank for _, rank in sorted(order)]
    nodes = [node_of(rank) for rank in ring]
    count = min(tolerate, len(ring) - 1)
    if count < 1:
        return ()
    first = _first(nodes)
    pairs = []
    for i, rank in enumerate(ring):
        chosen = [first[i]]
        while len(chosen) < count:
            chosen.append(_next(i, chosen, nodes, seen))
        pairs += [(rank, ring[j]) for j in chosen]
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _first(nodes: Sequence[int]) -> list[int]:
    """Position -> the next one on another node, where there is one; for all of them at once."""
    n = len(nodes)
    away = next((k for k in range(1, n) if nodes[k] != nodes[0]), n)  # how far ahead another node is; n: nowhere
    found = [0] * n
    for i in range(n, 0, -1):  # backwards, so that each one looks at the next one only
        away = 1 if nodes[i % n] != nodes[i - 1] else away + 1
        found[i - 1] = (i - 1 + away) % n if away < n else i % n
    return found


def _next(at: int, chosen: Sequence[int], nodes: Sequence[int], sizes: dict[int, int]) -> int:
    """One more peer for position `at`. `sizes`: ranks of each node."""
    copies: dict[int, int] = {}
    for i in (at, *chosen):
        copies[nodes[i]] = copies.get(nodes[i], 0) + 1
    fewest = 0
    if len(copies) == len(sizes):
        fewest = min(n for node, n in copies.items() if n < sizes[node])
    j = (at + 1) % len(nodes)
    while j == at or j in chosen or copies.get(nodes[j], 0) > fewest:
        j = (j + 1) % len(nodes)
    return j
