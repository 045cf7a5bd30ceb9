"""One microbatch's best path while some stages, nodes and times are closed to it: A* over partial paths.

The time to beat is that of the whole way, back through the same nodes included (Hart, Nilsson and Raphael 1968;
SkipPipe, section 4.2). Rules: rules.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

from trainsys.planner.skip.dispatch import NEVER, chain, seconds
from trainsys.planner.skip.rules import next_stages
from trainsys.planner.skip.setting import Setting, Stages

Busy = Mapping[int, Sequence[tuple[float, float]]]  # node -> intervals that are taken, ascending
_MOST = 300  # partial paths looked at before it takes what it has, or the first to be complete; small cases need fewer
_HURRY_S = 1e9  # what every visit then counts for


@dataclass(frozen=True)
class Way:
    """A path in time.

    Attributes:
        spans: (start, end) of every place of its chain (dispatch.chain).
    """

    path: tuple[int, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def end_s(self) -> float:
        return self.spans[-1][1]


@dataclass(frozen=True)
class Closed:
    """What a microbatch may not use."""

    stages: frozenset[int] = frozenset()
    nodes: frozenset[int] = frozenset()
    busy: tuple[tuple[int, float, float], ...] = ()  # (node, from, until)

    @cached_property
    def by_node(self) -> dict[int, list[tuple[float, float]]]:
        found: dict[int, list[tuple[float, float]]] = {}
        for node, start, end in sorted(self.busy):
            found.setdefault(node, []).append((start, end))
        return found


class Map:
    """The nodes with lower bounds of the way home from each; made once per placement."""

    def __init__(self, setting: Setting, stages: Stages) -> None:
        self.setting, self.stages = setting, stages
        self.stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}
        nodes, both = range(setting.num_nodes), 1 + setting.backward
        send = setting.send_s
        self.round_trip = [[0.0 if a == b else send[a][b] + send[b][a] for b in nodes] for a in nodes]
        self.own = [
            s * both * (setting.first if self.stage_of[node] == 0 else 1) for node, s in enumerate(setting.compute_s)
        ]
        self.rest = {home: self._rest(home) for home in stages[0]}

    def _rest(self, home: int) -> list[list[float]]:
        """``[visits to go][node]``: least seconds from the end of a node's forward until the microbatch has ended,
        the node's own backward and what came before it left out, in an idle cluster and with the rules relaxed."""
        setting, nodes = self.setting, range(self.setting.num_nodes)
        head = setting.compute_s[home] * setting.head * (1 + setting.backward)
        table = [[self.round_trip[node][home] + head for node in nodes]]
        for _ in range(setting.visits - 1):
            after = table[-1]
            row = []
            for node in nodes:
                low = self.stage_of[node] - 1
                ahead = (
                    self.round_trip[node][v] + self.own[v] + after[v]
                    for v in nodes
                    if self.stage_of[v] >= max(low, 1) and self.stage_of[v] != low + 1
                )
                row.append(min(ahead, default=NEVER))
            table.append(row)
        return table

    def least_s(self, home: int) -> float:
        """Of any microbatch of this home, alone in the cluster."""
        return self.own[home] + self.rest[home][self.setting.visits - 1][home]

    def best(self, home: int, closed: Closed, start_s: float = 0.0) -> Way | None:
        """The way that ends soonest, or one found after `_MOST` partial paths; None if nothing is left to it."""
        setting, busy, stage_of = self.setting, closed.by_node, self.stage_of
        rest, visits = self.rest[home], setting.visits
        begin = _delayed(busy.get(home, ()), start_s, setting.compute_s[home] * setting.first)
        now = begin + setting.compute_s[home] * setting.first
        heap: list[tuple[float, int, float, float, tuple[int, ...]]] = []
        last = setting.compute_s[home] * setting.first * setting.backward
        heappush(heap, (now + last + rest[visits - 1][home], 1, now, last, (home,)))
        looked, hurry_s, found = 0, 0.0, None
        while heap:
            _, state, now, back, path = heappop(heap)
            if state == 0:
                return self.timed(path, busy, start_s)
            looked += 1
            if len(path) == visits:
                way = self.timed(path, busy, start_s)
                if found is None or way.end_s < found.end_s:
                    found = way
                heappush(heap, (way.end_s - hurry_s * visits, 0, now, back, path))
                continue
            if looked == _MOST:
                if found is not None:
                    return found
                hurry_s = _HURRY_S
                heap = [(bound - hurry_s * len(p), state, t, b, p) for bound, state, t, b, p in heap]
                heapify(heap)
            send, to_go = setting.send_s[path[-1]], visits - len(path) - 1
            for stage in next_stages(setting, tuple(stage_of[node] for node in path)):
                if stage in closed.stages:
                    continue
                for node in self.stages[stage]:
                    if node in closed.nodes:
                        continue
                    work = setting.compute_s[node]
                    end = _delayed(busy.get(node, ()), now + send[node], work) + work
                    behind = back + work * setting.backward + setting.send_s[node][path[-1]]
                    bound = end + behind + rest[to_go][node] - hurry_s * (len(path) + 1)
                    heappush(heap, (bound, 1, end, behind, (*path, node)))
        return found

    def timed(self, path: tuple[int, ...], busy: Busy, start_s: float = 0.0) -> Way:
        """`path` begun as soon as possible, each place waiting for a gap long enough."""
        now, spans, before = start_s, [], path[0]
        for node, work in zip(chain(path), seconds(self.setting, path), strict=True):
            now += self.setting.send_s[before][node] if node != before else 0.0
            begin = _delayed(busy.get(node, ()), now, work)
            now, before = begin + work, node
            spans.append((begin, now))
        return Way(path, tuple(spans))


def _delayed(busy: Sequence[tuple[float, float]], begin: float, work: float) -> float:
    """The first time from `begin` on at which `work` seconds are free of `busy`, which ascends."""
    for start, end in busy:
        if start >= begin + work:
            break
        if end > begin:
            begin = end
    return begin
