"""One attempt to connect groups, in a thread that can be left behind.

Connecting waits for peers in places that nothing can interrupt. Whoever gives an attempt up hangs up on the store,
which frees a thread that waits there for word of a dead peer; one that waits inside the backend stays until its own
timeout. Neither touches anything but what the attempt has built, and that goes with it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from torch._C._distributed_c10d import Store

from trainsys.comm.group import Group
from trainsys.comm.sockets import Socket, connected_sockets, shut, to_port
from trainsys.comm.waiting import brief

Ranks = tuple[int, ...]
_OURS = (ArithmeticError, NameError, TypeError)
_cloning = threading.Lock()  # who waits for it would wait for the same store otherwise


class StoreClient:
    """A client of a store for one thread at a time. A new one costs a look-up of a name (5 s where nobody answers)."""

    def __init__(self, store: Store) -> None:
        self._source, self._sockets = store, frozenset[Socket]()
        self._store: Store | None = None

    def connect(self) -> Store:
        if self._store is None:
            port = _port(self._source)
            with _cloning:
                before = to_port(port)
                self._store = cast(Any, self._source).clone()
                self._sockets = frozenset(to_port(port) - before)
        assert self._store is not None
        return self._store

    def hang_up(self) -> None:
        """From any thread: fail what waits for the store."""
        for entry in self._sockets & connected_sockets():
            shut(entry)


def _port(store: Any) -> int:
    """Where a store listens, under whatever prefixes; -1 where it is not reached over TCP."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    return int(getattr(store, "port", -1))


class Attempt:
    """Run `connect` on a store's client and collect its groups.

    Args:
        changed: notified at the end.

    Attributes:
        over: it has ended: with `error`, or without.
        bug: the error itself, where it is not of peers and of the network: another attempt would have it too.
        built: the groups, whole where there was no error.
    """

    def __init__(
        self,
        changed: threading.Condition,
        client: StoreClient,
        connect: Callable[[Store], Iterator[tuple[Ranks, Group]]],
    ) -> None:
        self.client, self.built, self.error, self.over = client, dict[Ranks, Group](), "", False
        self.bug: Exception | None = None
        self._changed, self._connect, self._abandoned = changed, connect, False

    def run(self) -> None:
        """Body of the thread."""
        error = ""
        try:
            for ranks, group in self._connect(self.client.connect()):
                self.built[ranks] = group
                if self._abandoned:
                    break
        except Exception as failure:  # whatever it is: somebody waits for the end
            error = brief(failure)
            self.bug = failure if isinstance(failure, _OURS) else None
        with self._changed:
            self.error, self.over = error, True
            self._changed.notify_all()
            abandoned = self._abandoned
        if abandoned:
            self._drop()

    def abandon(self) -> None:
        """Give it up, whether it has failed or still connects."""
        with self._changed:
            self._abandoned = True
            over = self.over
        self.client.hang_up()
        if over:
            self._drop()

    def _drop(self) -> None:
        while self.built:
            _, group = self.built.popitem()
            group.abort()
            group.close()
