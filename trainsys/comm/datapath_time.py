"""How long a datapath takes on wires, the least that any could take, and what each wire carries.

`seconds` plays the messages as gloo sends them: those of an ordered pair one after another, pairs at the same time,
each as soon as its chunk is there; who shares a wire gets a fair share (max-min).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_bound import bound_s as bound_s
from trainsys.comm.datapath_check import way
from trainsys.comm.flows import Message, play
from trainsys.comm.wires import Edge, Wires

ALPHA_S = 1.5e-4  # of a message on a host's loopback, measured between gloo processes


def seconds(path: Datapath, wires: Wires, nbytes_per_member: float, alpha_s: float = ALPHA_S) -> float:
    """Until the last chunk has arrived. Serves the reduce-scatter (`Datapath.backwards`) likewise.

    Args:
        wires: of the members, numbered as they are.
        nbytes_per_member: of the tensor that each contributes.
        alpha_s: what every message costs its pair before bytes flow; latencies of wires come on top of it.

    Raises:
        ValueError: where the path uses a pair that has no way between.
    """
    routes, pair_of = _pairs(path, wires)
    nbytes = nbytes_per_member / path.slices
    arrived: dict[tuple[int, int], list[int]] = {}
    messages = []
    rows = path.sends.tolist()
    for i, (_, chunk, src, dst) in enumerate(rows):
        messages.append(Message(pair_of[src, dst], nbytes, tuple(arrived.get((chunk, src), ()))))
        arrived.setdefault((chunk, dst), []).append(i)
    return max(play(messages, routes, wires.links, alpha_s), default=0.0)


def seconds_by_steps(path: Datapath, wires: Wires, nbytes_per_member: float, alpha_s: float = ALPHA_S) -> float:
    """As if a step began when the one before has ended everywhere: an upper bound for paths of any size.

    A step takes as long as its busiest edge, plus the latency of its longest way. `alpha_s` is paid once a step.
    """
    routes, pair_of = _pairs(path, wires)
    if not routes:
        return 0.0
    edges = {edge: i for i, edge in enumerate(sorted({edge for route in routes for edge in route}))}
    slowness = np.array([1e-9 / wires.links[edge].gbps for edge in edges])
    pair = np.array([pair_of[row[0], row[1]] for row in path.sends[:, 2:].tolist()])
    latency = np.array([sum(wires.links[edge].latency_s for edge in route) for route in routes])
    total = 0.0
    starts = np.searchsorted(path.sends[:, 0], np.arange(path.num_steps + 1))
    for first, stop in pairwise(starts.tolist()):
        if first == stop:
            continue
        now = pair[first:stop].tolist()
        load = np.bincount([edges[edge] for p in now for edge in routes[p]], minlength=len(edges))
        total += float((load * slowness).max()) * nbytes_per_member / path.slices
        total += alpha_s + float(latency[now].max())
    return total


def edge_bytes(path: Datapath, wires: Wires, nbytes_per_member: float) -> dict[Edge, float]:
    """Bytes of payload on each edge of the wires, which counters of interfaces can be compared with."""
    found = dict.fromkeys(wires.links, 0.0)
    pairs, counts = np.unique(path.sends[:, 2:], axis=0, return_counts=True)
    for (src, dst), count in zip(pairs.tolist(), counts.tolist(), strict=True):
        for edge in way(wires, src, dst):
            found[edge] += count * nbytes_per_member / path.slices
    return found


def all_to_all_s(wires: Wires, nbytes_per_pair: float, alpha_s: float = ALPHA_S) -> float:
    """All pairs exchange `nbytes_per_pair` at once, each on its own way.

    Raises:
        ValueError: where a pair has no way between.
    """
    n = wires.num_ranks
    routes = [way(wires, a, b) for a in range(n) for b in range(n) if a != b]
    return max(play([Message(i, nbytes_per_pair) for i in range(len(routes))], routes, wires.links, alpha_s), default=0)


def all_reduce_s(path: Datapath, wires: Wires, nbytes_per_member: float, alpha_s: float = ALPHA_S) -> float:
    """Reduce-scatter, then all-gather, of tensors of ``size · nbytes_per_member``."""
    there = seconds(path.backwards(), wires, nbytes_per_member, alpha_s)
    return there + seconds(path, wires, nbytes_per_member, alpha_s)


def chain_s(members: int, nbytes: float, blocks: int, gbps: float, alpha_s: float = ALPHA_S) -> float:
    """An all-scan: `nbytes` from each member to the next in `blocks`, passed on block by block.

    ``(P-1 + K-1) · (α + S / (K·B))`` (ZeCO, arXiv 2507.01004).
    """
    return 0.0 if members < 2 else (members + blocks - 2) * (alpha_s + nbytes / (blocks * gbps * 1e9))


def best_blocks(members: int, nbytes: float, gbps: float, alpha_s: float = ALPHA_S, most: int = 64) -> int:
    """The number of blocks with the least `chain_s`: near ``sqrt((P-2)·S / (α·B))``."""
    return min(range(1, most + 1), key=lambda blocks: chain_s(members, nbytes, blocks, gbps, alpha_s))


def _pairs(path: Datapath, wires: Wires) -> tuple[list[Sequence[Edge]], dict[Edge, int]]:
    """The ways of the ordered pairs that send, and the number of each pair."""
    pairs: list[Edge] = [(a, b) for a, b in np.unique(path.sends[:, 2:], axis=0).tolist()]
    routes: list[Sequence[Edge]] = [way(wires, a, b) for a, b in pairs]
    return routes, {pair: i for i, pair in enumerate(pairs)}
