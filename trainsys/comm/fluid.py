"""Messages that flow over shared wires, as in a fluid: an event simulation for `datapath_time`. Imports no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge

SAME = 1e-9  # events so close, relatively, are one


class Message(NamedTuple):
    """`nbytes` on way number `pair`, once all messages of `after` have arrived and those before it there have ended."""

    pair: int
    nbytes: float
    after: tuple[int, ...] = ()


class _Shares:
    """The rate of each active pair under max-min fair sharing of edges (Bertsekas & Gallager 1992, 6.5.2)."""

    def __init__(self, routes: Sequence[Sequence[Edge]], links: Mapping[Edge, Link], crowd: float) -> None:
        self.crowd = crowd
        self.alone = np.array([min(links[edge].gbps for edge in route) * 1e9 for route in routes])
        users: dict[Edge, list[int]] = {}
        for pair, route in enumerate(routes):
            for edge in route:
                users.setdefault(edge, []).append(pair)
        shared = [edge for edge, pairs in users.items() if len(pairs) > 1]
        self.capacity = np.array([links[edge].gbps * 1e9 for edge in shared])
        self.uses = np.zeros((len(shared), len(routes)))
        for row, edge in enumerate(shared):
            self.uses[row, users[edge]] = 1
        self.known: dict[bytes, NDArray[np.float64]] = {}

    def rates(self, active: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Bytes/s of each pair, 0 for those not active."""
        if not len(self.capacity):
            return np.where(active, self.alone, 0.0)
        key = active.tobytes()
        if key not in self.known:
            self.known[key] = self._fill(active)
        return self.known[key]

    def _fill(self, active: NDArray[np.bool_]) -> NDArray[np.float64]:
        rate, free = np.zeros(len(active)), active.copy()
        left = self.capacity * np.where(self.uses @ active > 1, self.crowd, 1.0)
        while free.any():
            users = self.uses @ free
            share = np.where(users > 0, left / np.maximum(users, 1), np.inf)
            least = float(share.min())
            slow = free & (self.alone <= least * (1 + SAME))
            if slow.any():
                rate[slow] = self.alone[slow]
            else:
                slow = free & (self.uses[share <= least * (1 + SAME)].sum(0) > 0)
                rate[slow] = least
            left = np.maximum(left - self.uses @ np.where(slow, rate, 0.0), 0.0)
            free &= ~slow
        return rate


def play(
    messages: Sequence[Message],
    routes: Sequence[Sequence[Edge]],
    links: Mapping[Edge, Link],
    alpha_s: float,
    crowd: float = 1.0,
    connections: Sequence[int] | None = None,
) -> list[float]:
    """When each message has arrived, in s. A message costs its pair `alpha_s` first; wires add their latency after.

    Args:
        messages: in the order in which their pairs send them; `Message.after` names earlier ones by position.
        routes: of each pair, the edges.
        crowd: the part of its rate that an edge gives while messages share it.
        connections: of each pair; pairs of the same one take turns, first come first; None: each has its own.
    """
    latency = [sum(links[edge].latency_s for edge in route) for route in routes]
    shares = _Shares(routes, links, crowd)
    return _Play(messages, latency, shares, alpha_s, connections or range(len(routes))).run()


class _Play:
    def __init__(
        self, messages: Sequence[Message], latency: Sequence[float], shares: _Shares, alpha_s: float,
        connections: Sequence[int],
    ) -> None:  # fmt: skip
        self.connections = connections
        self.messages, self.latency, self.shares, self.alpha_s = messages, latency, shares, alpha_s
        self.queues: list[list[int]] = [[] for _ in latency]
        self.waits = [len(message.after) for message in messages]
        self.next: list[list[int]] = [[] for _ in messages]
        for i, message in enumerate(messages):
            self.queues[message.pair].append(i)
            for before in message.after:
                self.next[before].append(i)
        self.place = [0] * len(latency)  # of each pair, in its queue
        self.posted = [False] * len(latency)  # the next message of each pair flows, or waits for its connection
        self.busy = dict.fromkeys(connections, False)
        self.line: dict[int, deque[int]] = {connection: deque() for connection in self.busy}
        self.left = np.zeros(len(latency))
        self.active = np.zeros(len(latency), dtype=bool)
        self.arrival = [0.0] * len(messages)
        self.events: list[tuple[float, int, int]] = []  # time, 0 begins to flow / 1 arrives, message

    def run(self) -> list[float]:
        now = 0.0
        for pair in range(len(self.queues)):
            self._try(pair, now)
        while self.events or self.active.any():
            rates = self.shares.rates(self.active)
            spans = np.divide(self.left, rates, out=np.full(len(rates), np.inf), where=self.active)
            span = float(spans.min()) if len(spans) else np.inf
            until = min(now + span, self.events[0][0] if self.events else np.inf)
            close = (until - now) + SAME * until
            self.left -= rates * (until - now)
            now = until
            for pair in np.flatnonzero(spans <= close).tolist():
                self._end(pair, now)
            while self.events and self.events[0][0] <= now * (1 + SAME):
                _, arrives, i = heappop(self.events)
                if arrives:
                    self._arrive(i, now)
                else:
                    self._flow(i)
        assert all(place == len(queue) for place, queue in zip(self.place, self.queues, strict=True)), "waits for ever"
        return self.arrival

    def _try(self, pair: int, now: float) -> None:
        """Post the next message of `pair`, if it may begin."""
        queue, place = self.queues[pair], self.place[pair]
        if self.posted[pair] or place == len(queue) or self.waits[queue[place]]:
            return
        self.posted[pair] = True
        self.line[self.connections[pair]].append(pair)
        self._next(self.connections[pair], now)

    def _next(self, connection: int, now: float) -> None:
        """Begin with what has waited longest for `connection`, if it is free."""
        if self.busy[connection] or not self.line[connection]:
            return
        self.busy[connection] = True
        pair = self.line[connection].popleft()
        i = self.queues[pair][self.place[pair]]
        if self.alpha_s:
            heappush(self.events, (now + self.alpha_s, 0, i))
        else:
            self._flow(i)

    def _flow(self, i: int) -> None:
        pair = self.messages[i].pair
        self.left[pair], self.active[pair] = self.messages[i].nbytes, True

    def _end(self, pair: int, now: float) -> None:
        i = self.queues[pair][self.place[pair]]
        self.place[pair] += 1
        self.posted[pair], self.active[pair] = False, False
        self.busy[self.connections[pair]] = False
        self.left[pair] = 0.0
        if self.latency[pair]:
            heappush(self.events, (now + self.latency[pair], 1, i))
        else:
            self._arrive(i, now)
        self._try(pair, now)
        self._next(self.connections[pair], now)

    def _arrive(self, i: int, now: float) -> None:
        self.arrival[i] = now
        for after in self.next[i]:
            self.waits[after] -= 1
            if not self.waits[after]:
                self._try(self.messages[after].pair, now)
