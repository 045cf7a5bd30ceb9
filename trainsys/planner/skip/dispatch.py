"""The event simulation that scores a plan: every microbatch is a chain of work, every node takes what has arrived.

A chain is forward along the path, head and its backward at home, and backward along the path. A node works whenever
something that it may begin is there. Transfers of one direction between two nodes queue behind each other. This is
what `schedule.simulate` computes of the plan's schedule (to_schedule.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from trainsys.planner.skip.setting import Paths, Setting

NEVER = float("inf")


@dataclass(frozen=True)
class Order:
    """Whom a node prefers.

    Attributes:
        rank: ``[microbatch]``: the lower goes first.
        backward_first: whether the backward of any goes before the forward of any.
    """

    rank: tuple[int, ...]
    backward_first: bool = True


class Work(NamedTuple):
    """One interval of a node. `place` counts along the microbatch's chain: with L visits, 0 … L-1 are the forwards, L
    and L+1 the head's forward and backward, L+2 … 2L+1 the backwards."""

    node: int
    microbatch: int
    place: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of a plan.

    Attributes:
        step_s: until the last backward has ended; infinite if microbatches wait for each other's memory.
        work: all intervals, by start.
        waited: ``[microbatch]``: seconds that it was on a node without being worked on.
    """

    step_s: float
    work: tuple[Work, ...]
    waited: tuple[float, ...]


def chain(path: Sequence[int]) -> tuple[int, ...]:
    """The nodes that a microbatch's work lies on, in order."""
    return (*path, path[0], path[0], *reversed(path))


def seconds(setting: Setting, path: Sequence[int]) -> list[float]:
    """Of each place of the chain."""
    forward = [setting.compute_s[node] for node in path]
    forward[0] *= setting.first
    head = setting.compute_s[path[0]] * setting.head
    return [*forward, head, head * setting.backward, *(f * setting.backward for f in reversed(forward))]


def dispatch(setting: Setting, paths: Paths, order: Order) -> Outcome:
    """Run `paths`; the time grows as places times the logarithm of microbatches."""
    return _Run(setting, paths, order).finish()


class _Run:
    def __init__(self, setting: Setting, paths: Paths, order: Order) -> None:
        nodes, m = setting.num_nodes, len(paths)
        self.setting, self.m = setting, m
        self.chains = [chain(path) for path in paths]
        self.seconds = [seconds(setting, path) for path in paths]
        self.visits = [len(path) for path in paths]
        self.rank, self.early = order.rank, m if order.backward_first else 0
        self.at = [0] * m  # place of the chain that is next or under way
        self.room = list(setting.limit)
        self.free = [True] * nodes
        self.entering: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]  # need room; (preference, microbatch)
        self.inside: list[list[tuple[int, int]]] = [[] for _ in range(nodes)]
        self.link_free = [0.0] * (nodes * nodes)
        self.arrived = [0.0] * m
        self.waited = [0.0] * m
        self.work: list[Work] = []
        self.events: list[tuple[float, int]] = []  # (time, microbatch: arrives; m + microbatch: its work ends)

    def finish(self) -> Outcome:
        for mb, nodes in enumerate(self.chains):
            heappush(self.entering[nodes[0]], (self.rank[mb], mb))
        for node in sorted({nodes[0] for nodes in self.chains}):
            self.pick(node, 0.0)
        now, events, m = 0.0, self.events, self.m
        while events:
            now, what = heappop(events)
            if what < m:
                self.arrive(what, now)
            else:
                self.end(what - m, now)
        done = all(at == len(nodes) for at, nodes in zip(self.at, self.chains, strict=True))
        return Outcome(now if done else NEVER, tuple(self.work), tuple(self.waited))

    def arrive(self, mb: int, now: float) -> None:
        place = self.at[mb]
        node = self.chains[mb][place]
        self.arrived[mb] = now
        if place < self.visits[mb]:
            heappush(self.entering[node], (self.rank[mb], mb))
        else:
            heappush(self.inside[node], (self.rank[mb] - self.early, mb))
        if self.free[node]:
            self.pick(node, now)

    def pick(self, node: int, now: float) -> None:
        """The node, which is free, takes the best of what it may begin."""
        entering, inside = self.entering[node], self.inside[node]
        if entering and self.room[node] and (not inside or entering[0] < inside[0]):
            mb = heappop(entering)[1]
            self.room[node] -= 1
        elif inside:
            mb = heappop(inside)[1]
        else:
            self.free[node] = True
            return
        self.free[node] = False
        place = self.at[mb]
        end = now + self.seconds[mb][place]
        self.waited[mb] += now - self.arrived[mb]
        self.work.append(Work(node, mb, place, now, end))
        heappush(self.events, (end, self.m + mb))

    def end(self, mb: int, now: float) -> None:
        place, nodes = self.at[mb], self.chains[mb]
        node = nodes[place]
        if place > self.visits[mb] + 1:
            self.room[node] += 1
        self.at[mb] = place = place + 1
        self.free[node] = True
        if place < len(nodes):
            there = nodes[place]
            if there == node:
                self.arrive(mb, now)
            else:
                link = node * self.setting.num_nodes + there
                arrival = max(now, self.link_free[link]) + self.setting.send_s[node][there]
                self.link_free[link] = arrival
                heappush(self.events, (arrival, mb))
        if self.free[node]:
            self.pick(node, now)
