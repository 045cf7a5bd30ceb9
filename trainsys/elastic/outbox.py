"""The manager's line to its agent: what it decides is entered there before anybody acts on it.

The agent outlives the manager and keeps its `Book`, its history and the record of the run. All that belongs to one
decision goes in one message, so that it is entered whole or not at all. The agent takes messages in turn; a manager is
one message ahead of it at most.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from trainsys.elastic.analyst.verdict import Finding
from trainsys.elastic.book import Book, difference
from trainsys.elastic.messages import Proposal
from trainsys.elastic.record import Change
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout

TAKEN, ENDED, ROOM, STOP = "taken", "ended", "room", "stop"  # what an agent says
_LAST_S = 5.0
Entry = tuple[str, tuple[Any, ...]]


class Outbox:
    """Entries to come, and what the agent says meanwhile. An observer and a launcher for the manager.

    Args:
        connection: to the agent, at whose end this process ends.
        book: as the agent has it.
        beat_s: seconds between signs of life.
    """

    def __init__(self, connection: Connection, book: Book, beat_s: float) -> None:
        self._connection, self._book = connection, book
        self._entries: list[Entry] = []
        self._room = threading.Semaphore(1)
        self._lock = threading.Lock()
        self._ended: list[int] = []
        self._room_in = SimpleQueue[int]()  # nodes
        self.stop_wanted = False
        threading.Thread(target=self._listen, daemon=True, name="agent").start()
        threading.Thread(target=self._beat, args=(beat_s,), daemon=True, name="heartbeat").start()

    def post(self, book: Book) -> None:
        """Enter what was added since the last time, and how `book` differs from the one entered last."""
        changed = difference(self._book, book)
        if not self._entries and not changed:
            return
        self._room.acquire()
        entries, self._entries, self._book = self._entries, [], book
        self._send((changed, entries))

    def line(self, record: Mapping[str, Any]) -> None:
        """One line of the manager's history."""
        self._add("line", record)

    def over(self, failure: str, bug: str) -> None:
        """The last entry: why training could not go on, or what is wrong with the manager. Waits until it is taken."""
        self._add("over", failure, bug)
        self.post(self._book)
        self._room.acquire(timeout=_LAST_S)

    # -- a launcher ----------------------------------------------------------------------------------------------

    def spawn(self, rank: int, node: int) -> None:
        self._add("spawn", rank, node)

    def kill(self, rank: int) -> None:
        self._add("kill", rank)

    def ended(self) -> Sequence[int]:
        return tuple(self._ended)

    def room(self) -> Sequence[int]:
        return [self._room_in.get() for _ in range(self._room_in.qsize())]

    def took(self, node: int) -> None:
        """A place that `room` offered is used."""
        self._add("took", node)

    # -- an observer ---------------------------------------------------------------------------------------------

    def joined(self, rank: int, node: int) -> None:
        self._add("joined", rank, node)

    def never_joined(self, rank: int, why: str) -> None:
        self._add("never_joined", rank, why)

    def lost(self, rank: int, cause: str, step: int) -> None:
        self._add("lost", rank, cause, step)

    def left(self, rank: int, step: int) -> None:
        self._add("left", rank, step)

    def changed(self, change: Change) -> None:
        self._add("changed", change)

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None:
        kept = {rank: replace(proposal, times=None) for rank, proposal in proposals.items()}
        self._add("committed", decision, kept, epoch, layout)

    def found(self, finding: Finding, step: int) -> None:
        self._add("found", finding, step)

    def saved(self, step: int, path: str, error: str) -> None:
        self._add("saved", step, path, error)

    # -- the connection ------------------------------------------------------------------------------------------

    def _add(self, what: str, *about: Any) -> None:
        self._entries.append((what, about))

    def _send(self, message: Any) -> None:
        try:
            with self._lock:
                self._connection.send(message)
        except OSError:
            os._exit(1)  # nobody would know of what is decided now

    def _listen(self) -> None:
        try:
            while True:
                match self._connection.recv():
                    case [what] if what == TAKEN:
                        self._room.release()
                    case [what, rank] if what == ENDED:
                        self._ended.append(rank)
                    case [what, node] if what == ROOM:
                        self._room_in.put(node)
                    case [what] if what == STOP:
                        self.stop_wanted = True
        except (EOFError, OSError):
            os._exit(1)

    def _beat(self, beat_s: float) -> None:
        while True:
            self._send(None)
            time.sleep(beat_s)
