"""What stands between ways that were found one by one, and what each microbatch may be denied to settle it.

SkipPipe's three kinds, in the order in which they are settled: a stage that more microbatches visit than may; a node
that holds more than it can; two that work on a node at the same time, unless both are on their way back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from random import Random

from trainsys.planner.skip.agent import Closed, Map, Way

Denial = dict[int, Closed]  # microbatch -> what is closed to it from now on
_ROOM_BRANCHES = 3


def crowded_stage(way_map: Map, ways: Sequence[Way], closed: Sequence[Closed], dice: Random) -> list[Denial] | None:
    """Ways to send the surplus of the most crowded stage elsewhere: the slowest, the quickest, any. None: no crowd."""
    capacity = way_map.setting.capacity
    count = Counter(way_map.stage_of[node] for way in ways for node in way.path)
    surplus, stage = max((count[stage] - most, stage) for stage, most in enumerate(capacity))
    if surplus <= 0:
        return None
    there = [mb for mb, way in enumerate(ways) if any(way_map.stage_of[node] == stage for node in way.path)]
    slowest = sorted(there, key=lambda mb: -ways[mb].end_s)
    picks = {tuple(sorted(p)) for p in (slowest[:surplus], slowest[-surplus:], dice.sample(there, surplus))}
    return [{mb: replace(closed[mb], stages=closed[mb].stages | {stage}) for mb in pick} for pick in sorted(picks)]


def crowded_node(way_map: Map, ways: Sequence[Way], closed: Sequence[Closed]) -> list[Denial] | None:
    """The first moment at which a node would hold too much: one of those that it holds goes elsewhere."""
    setting = way_map.setting
    holds: dict[int, list[tuple[float, int, int]]] = {}
    for mb, way in enumerate(ways):
        for place, node in enumerate(way.path):
            if place:  # home waits at home
                end = way.spans[len(way.spans) - 1 - place][1]
                holds.setdefault(node, []).extend([(way.spans[place][0], 1, mb), (end, 0, mb)])
    for node, moments in sorted(holds.items()):
        inside: set[int] = set()
        for _, enters, mb in sorted(moments):
            (inside.add if enters else inside.discard)(mb)
            if len(inside) > setting.limit[node]:
                slowest = sorted(inside, key=lambda a: -ways[a].end_s)[:_ROOM_BRANCHES]
                return [{a: replace(closed[a], nodes=closed[a].nodes | {node})} for a in slowest]
    return None


def waits_s(way_map: Map, ways: Sequence[Way]) -> float:
    """Seconds that nodes are wanted by more than one microbatch: work that begins before what is ahead of it can have
    ended, were it done in the order of arrival."""
    arrivals: dict[int, list[tuple[float, float]]] = {}
    for way in ways:
        nodes = (*way.path, way.path[0], way.path[0], *reversed(way.path))
        for node, span in zip(nodes, way.spans, strict=True):
            arrivals.setdefault(node, []).append(span)
    total = 0.0
    for row in arrivals.values():
        free = 0.0
        for start, end in sorted(row):
            begin = max(start, free)
            total += begin - start
            free = begin + end - start
    return total


def collision(way_map: Map, ways: Sequence[Way], closed: Sequence[Closed]) -> list[Denial] | None:
    """The first two that would work on a node at once: either waits until the other is through."""
    visits = way_map.setting.visits
    spans: dict[int, list[tuple[float, float, int, bool]]] = {}
    for mb, way in enumerate(ways):
        nodes = (*way.path, way.path[0], way.path[0], *reversed(way.path))
        for place, (node, (start, end)) in enumerate(zip(nodes, way.spans, strict=True)):
            spans.setdefault(node, []).append((start, end, mb, place > visits))
    first: tuple[float, int, tuple[float, float, int], tuple[float, float, int]] | None = None
    for node, row in spans.items():
        row.sort()
        for (s0, e0, a, back_a), (s1, e1, b, back_b) in pairwise(row):
            if s1 < e0 and a != b and not (back_a and back_b) and (first is None or (s1, node) < first[:2]):
                first = (s1, node, (s0, e0, a), (s1, e1, b))
    if first is None:
        return None
    _, node, (s0, e0, a), (s1, e1, b) = first
    return [
        {b: replace(closed[b], busy=(*closed[b].busy, (node, s0, e0)))},
        {a: replace(closed[a], busy=(*closed[a].busy, (node, s1, e1)))},
    ]
