"""Ranks on their way, and those that are to be started later."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.book import Book


class Recruits:
    """The manager's list of them.

    Args:
        spawn: starts a rank in a node.

    Attributes:
        started: ranks on their way, and since when.
        joins: steps at which a fresh one is started.
        respawns: (when, node) of those that replace a rank.
        next_rank: that nobody had yet.
    """

    def __init__(self, config: RunConfig, book: Book, spawn: Callable[[int, int], None]) -> None:
        self._config, self._spawn = config, spawn
        self.started = dict.fromkeys(book.started, time.monotonic())
        self.joins, self.respawns, self.next_rank = list(book.joins), list(book.respawns), book.next_rank

    def entry(self) -> dict[str, Any]:
        """Fields of a `Book`: whoever takes over goes on from here."""
        started, joins, respawns = tuple(self.started), tuple(self.joins), tuple(self.respawns)
        return {"started": started, "joins": joins, "respawns": respawns, "next_rank": self.next_rank}

    def arrived(self, rank: int) -> None:
        """It is here."""
        self.started.pop(rank, None)
        self.next_rank = max(self.next_rank, rank + 1)

    def replace(self, node: int) -> None:
        """Have a fresh rank in a node later, if that is wanted."""
        if self._config.elastic.spare_delay_s >= 0:
            self.respawns.append((time.monotonic() + self._config.elastic.spare_delay_s, node))

    def start_due(self, now: float) -> None:
        """Start those whose time has come."""
        for due, node in [r for r in self.respawns if r[0] <= now]:
            self.respawns.remove((due, node))
            self.start(node)

    def join(self, step: int, nodes: Iterable[int]) -> None:
        """Start those that join before `step`, each in the emptiest node; `nodes`: of the members."""
        count = Counter(dict.fromkeys(range(self._config.cluster.nodes), 0))
        count.update(nodes)
        while self.joins and self.joins[0] <= step:
            self.joins.pop(0)
            node = min(count, key=lambda n: (count[n], n))
            self.start(node)
            count[node] += 1

    def overdue(self, now: float) -> list[int]:
        """Those who should be here by now."""
        limit_s = self._config.elastic.start_limit_s
        return [rank for rank, since in self.started.items() if now - since > limit_s]

    def start(self, node: int) -> None:
        """A fresh rank."""
        self._spawn(self.next_rank, node)
        self.started[self.next_rank] = time.monotonic()
        self.next_rank += 1
