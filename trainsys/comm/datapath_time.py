"""How long a datapath takes on wires, the least that any could take, and what each wire carries.

`seconds` plays the messages as gloo sends them: those of an ordered pair one after another, pairs at the same time,
each as soon as its chunk is there; who shares a wire gets a fair share (max-min).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_bound import bound_s as bound_s
from trainsys.comm.datapath_check import way
from trainsys.comm.fluid import Message, play
from trainsys.comm.wires import Edge, Wires

CROWD = 0.93  # fitted: gloo over a star of 4, everyone to everyone, took 1.07 times the ring; two rings took 1.15 times
ALPHA_S = 1.5e-4  # of a message on a host's loopback, measured between gloo processes


def seconds(
    path: Datapath, wires: Wires, nbytes_per_member: float, alpha_s: float = ALPHA_S, crowd: float = 1.0
) -> float:
    """Until the last chunk has arrived. Serves the reduce-scatter (`Datapath.backwards`) likewise.

    Args:
        wires: of the members, numbered as they are.
        nbytes_per_member: of the tensor that each contributes.
        alpha_s: what every message costs its pair before bytes flow; latencies of wires come on top of it.
        crowd: the part of its rate that an edge gives while messages share it, such as `CROWD`.

    Raises:
        ValueError: where the path uses a pair that has no way between.
    """
    pairs = _Pairs(path, wires)
    if not pairs.share():
        return pairs.waves(nbytes_per_member / path.slices, alpha_s)
    arrived: dict[tuple[int, int], list[int]] = {}
    messages = []
    for i, (_, chunk, src, dst) in enumerate(path.sends.tolist()):
        messages.append(
            Message(int(pairs.of[i]), nbytes_per_member / path.slices, tuple(arrived.get((chunk, src), ())))
        )
        arrived.setdefault((chunk, dst), []).append(i)
    return max(play(messages, pairs.routes, wires.links, alpha_s, crowd), default=0.0)


def seconds_by_steps(path: Datapath, wires: Wires, nbytes_per_member: float, alpha_s: float = ALPHA_S) -> float:
    """As if a step began when the one before has ended everywhere: an upper bound, quick for shared wires of any size.

    A step takes as long as its busiest edge, plus the latency of its longest way. `alpha_s` is paid once for each
    message that a pair has in the step.
    """
    pairs, total = _Pairs(path, wires), 0.0
    numbers = {edge: i for i, edge in enumerate(wires.links)}
    slowness = np.array([1e-9 / link.gbps for link in wires.links.values()] + [0.0])
    longest = max(map(len, pairs.routes), default=0)
    edges = np.full((len(pairs.routes), longest), len(numbers))
    for pair, route in enumerate(pairs.routes):
        edges[pair, : len(route)] = [numbers[edge] for edge in route]
    starts = np.searchsorted(path.sends[:, 0], np.arange(path.num_steps + 1))
    for first, stop in pairwise(starts.tolist()):
        now = pairs.of[first:stop]
        if len(now):
            load = np.bincount(edges[now].ravel(), minlength=len(slowness))
            total += float((load * slowness).max()) * nbytes_per_member / path.slices
            total += alpha_s * int(np.bincount(now).max()) + float(pairs.latency_s[now].max())
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


class _Pairs:
    """The ordered pairs that send: `routes` of each, `of` each send the number of its pair."""

    def __init__(self, path: Datapath, wires: Wires) -> None:
        self.path = path
        keys = path.sends[:, 2].astype(np.int64) * path.size + path.sends[:, 3]
        pairs, self.of = np.unique(keys, return_inverse=True)
        self.routes = [way(wires, *divmod(key, path.size)) for key in pairs.tolist()]
        links = [[wires.links[edge] for edge in route] for route in self.routes]
        self.latency_s = np.array([sum(link.latency_s for link in route) for route in links])
        self.gbps = np.array([min(link.gbps for link in route) for route in links])

    def share(self) -> bool:
        """Whether two of them share an edge."""
        return len({edge for route in self.routes for edge in route}) < sum(map(len, self.routes))

    def waves(self, nbytes: float, alpha_s: float) -> float:
        """What `play` says where nothing is shared: sends of one step at once, those of a pair in turn."""
        steps, chunks, src, dst = self.path.sends.T
        turns = self._turns(steps)
        order = np.lexsort((turns, steps))
        moments = steps.astype(np.int64) * (int(turns.max(initial=0)) + 1) + turns
        cuts = np.flatnonzero(np.diff(moments[order])) + 1
        busy_s = alpha_s + nbytes / (self.gbps * 1e9)
        there = np.zeros((self.path.num_chunks, self.path.size))  # when it has arrived, or the last that is added
        free = np.zeros(len(self.routes))
        for now in np.split(order, cuts):
            pair = self.of[now]
            free[pair] = np.maximum(free[pair], there[chunks[now], src[now]]) + busy_s[pair]
            np.maximum.at(there, (chunks[now], dst[now]), free[pair] + self.latency_s[pair])
        return float(there.max(initial=0.0))

    def _turns(self, steps: NDArray[np.int32]) -> NDArray[np.int64]:
        """How many sends of the same pair and step come before."""
        key = steps.astype(np.int64) * max(len(self.routes), 1) + self.of
        order = np.argsort(key, kind="stable")
        first = np.searchsorted(key[order], key[order])
        turns = np.empty(len(key), dtype=np.int64)
        turns[order] = np.arange(len(key)) - first
        return turns
