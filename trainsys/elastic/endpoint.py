"""Where workers meet the manager: a listener for control connections and a store for connecting process groups."""

from __future__ import annotations

import multiprocessing as mp
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge

from torch._C._distributed_c10d import TCPStore

from trainsys.comm.lookups import retry_soon
from trainsys.elastic.control import Address

_AGAIN_S = 0.05


@dataclass(frozen=True)
class Rendezvous:
    """What a worker needs to join."""

    control: Address
    authkey: bytes
    store: tuple[str, int]


class Endpoint:
    """The manager's end, open until `close`.

    Args:
        host: address to listen on.
        port: of the store; 0 takes a free one.

    Raises:
        ValueError: the port is busy.
    """

    def __init__(self, host: str, port: int) -> None:
        retry_soon()
        try:
            self._store = TCPStore(host, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
        except RuntimeError:
            raise ValueError(f"port {port} on {host} is busy; set elastic.port=0 for a free one") from None
        authkey = secrets.token_bytes(16)
        self._listener = Listener((host, 0), backlog=64)
        self.rendezvous = Rendezvous(self._listener.address, authkey, (host, self._store.port))
        self._thread: threading.Thread | None = None
        self.closed = False

    def serve(self, connected: Callable[[Connection], None]) -> None:
        """From now on call `connected`, from a thread, with every connection that knows the key."""
        self._thread = threading.Thread(target=self._accept, args=(connected,), daemon=True, name="accept")
        self._thread.start()

    def close(self) -> None:
        """Free both ports at once."""
        self.closed = True
        if self._thread is not None:
            with suppress(OSError):
                Client(self.rendezvous.control).close()  # wakes the thread that accepts
            self._thread.join()
        self._listener.close()
        del self._store

    def _accept(self, connected: Callable[[Connection], None]) -> None:
        while not self.closed:
            try:
                args = (self._listener.accept(), connected)
            except OSError:
                time.sleep(_AGAIN_S)  # out of file descriptors, perhaps
                continue
            threading.Thread(target=self._admit, args=args, daemon=True, name="admit").start()

    def _admit(self, connection: Connection, connected: Callable[[Connection], None]) -> None:
        """Check the key, both ways. In a thread of its own: who connects and says nothing keeps nobody else out."""
        try:
            deliver_challenge(connection, self.rendezvous.authkey)
            answer_challenge(connection, self.rendezvous.authkey)
        except (OSError, EOFError, mp.AuthenticationError):
            connection.close()
        else:
            connected(connection)
