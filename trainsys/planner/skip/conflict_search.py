"""Conflict-based search (Sharon et al. 2015): every microbatch on its best way, conflicts settled by branching.

A branch denies something to some microbatches and finds their ways anew (agent.py). As in SkipPipe a first phase
gathers plans that keep to the stages' limits, those first whose slowest microbatch is quickest; a second settles nodes
and times in them. Other than there, it goes on with the branch that leaves least to be waited for, the idea of a focal
list (Barer et al. 2014, "Suboptimal variants of the conflict-based search algorithm"): by the slowest microbatch alone
it stays among a thousand ways to pile all work on the same quick nodes. And memory and collisions that are left are no
reason to reject a plan: the event simulation makes microbatches wait, and its time is the score. So every plan counts
from the first one on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from random import Random

from trainsys.planner.skip.agent import Closed, Map, Way
from trainsys.planner.skip.conflicts import Denial, collision, crowded_node, crowded_stage, waits_s
from trainsys.planner.skip.setting import Paths

Offer = tuple[Paths, tuple[int, ...]]  # paths, and the rank of every microbatch

_GATHERED = 32  # plans of the first phase
_SOUGHT = 400  # branches that it looks at for them


@dataclass(frozen=True)
class _Branch:
    ways: tuple[Way, ...]
    closed: tuple[Closed, ...]

    @property
    def slowest_s(self) -> float:
        return max(way.end_s for way in self.ways)


def settled(way_map: Map, seed: int = 0) -> Iterator[Offer | None]:
    """Plans within the stages' limits, each with a rank of its microbatches, the slowest first; the search ends when
    no conflict is left in the branch at its head, or no branch. None: a branch that breaks some, so that the caller can
    end the search."""
    search = _Search(way_map, Random(seed))
    yield from search.gather()
    yield from search.settle()


class _Search:
    def __init__(self, way_map: Map, dice: Random) -> None:
        self.map, self.dice, self.numbers = way_map, dice, count()
        self.first: list[tuple[float, int, _Branch]] = []
        self.second: list[tuple[float, int, _Branch]] = []
        setting, nothing = way_map.setting, Closed()
        homes = [setting.home(way_map.stages, mb) for mb in range(setting.microbatches)]
        best = {home: way_map.best(home, nothing) for home in set(homes)}
        ways = [best[home] for home in homes]
        if all(ways):
            self.push(self.first, _Branch(tuple(way for way in ways if way), (nothing,) * len(ways)))

    def push(self, heap: list[tuple[float, int, _Branch]], branch: _Branch) -> None:
        cost = waits_s(self.map, branch.ways) if heap is self.second else branch.slowest_s
        heappush(heap, (cost, next(self.numbers), branch))

    def gather(self) -> Iterator[Offer | None]:
        """Phase A: the stages' limits."""
        for _ in range(_SOUGHT):
            if not self.first or len(self.second) == _GATHERED:
                return
            branch = heappop(self.first)[2]
            denials = crowded_stage(self.map, branch.ways, branch.closed, self.dice)
            if denials is None:
                self.push(self.second, branch)
            yield None if denials else _said(branch)
            for child in self.children(branch, denials or []):
                self.push(self.first, child)

    def settle(self) -> Iterator[Offer | None]:
        """Phase B: memory of nodes and collisions too."""
        while self.second:
            branch = heappop(self.second)[2]
            denials = crowded_stage(self.map, branch.ways, branch.closed, self.dice)
            yield None if denials else _said(branch)
            if denials is None:
                denials = crowded_node(self.map, branch.ways, branch.closed)
            if denials is None:
                denials = collision(self.map, branch.ways, branch.closed)
            if denials is None:
                return
            for child in self.children(branch, denials):
                self.push(self.second, child)

    def children(self, branch: _Branch, denials: list[Denial]) -> Iterator[_Branch]:
        setting, stages = self.map.setting, self.map.stages
        for denial in denials:
            ways, closed = list(branch.ways), list(branch.closed)
            for mb, shut in denial.items():
                way = self.map.best(setting.home(stages, mb), shut)
                if way is None:
                    break
                ways[mb], closed[mb] = way, shut
            else:
                yield _Branch(tuple(ways), tuple(closed))


def _said(branch: _Branch) -> Offer:
    order = sorted(range(len(branch.ways)), key=lambda mb: (-branch.ways[mb].end_s, mb))
    rank = [0] * len(order)
    for place, mb in enumerate(order):
        rank[mb] = place
    return tuple(way.path for way in branch.ways), tuple(rank)
