"""The manager's ends of the control connections: who is connected, what they say, and for how long they were silent."""

from __future__ import annotations

import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from trainsys.elastic.messages import Beat

_SEND_LIMIT_S = 1


def limit_sending(connection: Connection) -> None:
    """Who does not read may not stop the manager: what it sends fails after a second."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_LIMIT_S, 0))


class Link:
    """One connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        limit_sending(connection)
        self.rank = -1  # once it said Hello
        self.heard = time.monotonic()  # when something last arrived
        self.beat: Beat | None = None  # the last one
        self.told = self.heard  # when it came
        self.offset_s = float("inf")  # to add to the rank's clock, at most
        self.forgiven_s = 0.0  # of the silence since then, in which the manager's own process did not run

    def send(self, message: Any) -> None:
        try:
            self._connection.send(message)
        except OSError:  # what half a message has left of the stream is worth nothing
            self.cut()  # the end is read next

    def read(self) -> Any:
        message = self._connection.recv()
        self.heard, self.forgiven_s = time.monotonic(), 0.0
        if isinstance(message, Beat) and message.doing is not None:
            self.beat, self.told = message, self.heard
            self.offset_s = min(self.offset_s, self.heard - message.doing.now_s)
        return message

    def cut(self) -> None:
        """End it for both sides, whoever still reads."""
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as sock:
            sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()


class Absent:
    """In the place of a member's link, until it has found the manager that took over.

    Args:
        since: when the manager before last said something, CLOCK_MONOTONIC.
    """

    def __init__(self, since: float) -> None:
        self.rank, self.heard, self.forgiven_s = -1, time.monotonic(), time.monotonic() - since

    def send(self, message: Any) -> None:
        """It is told when it is here."""

    def cut(self) -> None:
        """There is nothing to end."""

    def close(self) -> None:
        """There is nothing to close."""


class Links:
    """All of them. A thread of its own reads each, so that a rank that freezes inside a message blocks nobody else,
    and a heartbeat counts when it arrives, however busy the manager is.

    Args:
        tick_s: how long `receive` waits.
    """

    def __init__(self, tick_s: float) -> None:
        self._tick_s, self._checked = tick_s, time.monotonic()
        self._inbox: queue.Queue[tuple[Link, Any]] = queue.Queue()

    def connected(self, connection: Connection) -> None:
        """Begin to read a new connection."""
        threading.Thread(target=self._read, args=(Link(connection),), daemon=True, name="link").start()

    def receive(self) -> tuple[Link, Any] | None:
        """The next message and its link, with None for the end of a connection; None alone after a tick of silence."""
        try:
            return self._inbox.get(timeout=self._tick_s)
        except queue.Empty:
            return None

    def checked_lately(self) -> bool:
        """Whether `silent` was asked less than a tick ago."""
        return time.monotonic() < self._checked + self._tick_s

    def silent(self, links: Sequence[Link | Absent], limit_s: float) -> list[Link | Absent]:
        """Those of `links` not heard for `limit_s`. Time in which this process itself did not run is forgiven: call it
        every two ticks at least."""
        now = time.monotonic()
        away_s, self._checked = now - self._checked - 2 * self._tick_s, now
        if away_s > self._tick_s:
            for link in links:
                link.heard = min(now, link.heard + away_s)
                link.forgiven_s += away_s
        return [link for link in links if now - link.heard > limit_s]

    def _read(self, link: Link) -> None:
        try:
            while True:
                message = link.read()
                if not isinstance(message, Beat):
                    self._inbox.put((link, message))
        except Exception:  # also what other code has pickled
            self._inbox.put((link, None))
