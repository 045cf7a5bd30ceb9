"""Where workers meet the manager: a socket for control connections and a store for connecting process groups.

Both belong to the agent, so that they outlive a manager: who connects while there is none waits in the socket's queue.
"""

from __future__ import annotations

import multiprocessing as mp
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from torch._C._distributed_c10d import TCPStore

from trainsys.comm.lookups import retry_soon
from trainsys.elastic.control import Address

_AGAIN_S = 0.05
_BACKLOG = 1024


@dataclass(frozen=True)
class Rendezvous:
    """What a worker needs to join."""

    control: Address
    authkey: bytes
    store: tuple[str, int]


class Endpoint:
    """The agent's end, open until `close`.

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
        self.socket = socket.create_server((host, 0), backlog=_BACKLOG)
        control = self.socket.getsockname()[:2]
        self.rendezvous = Rendezvous(control, secrets.token_bytes(16), (host, self._store.port))

    def close_door(self) -> None:
        """Nobody manages any more: who still wants to join, or waits to, learns so at once."""
        self.socket.close()

    def close(self) -> None:
        """Free both ports at once."""
        self.close_door()
        del self._store


def serve(listening: socket.socket, authkey: bytes, connected: Callable[[Connection], None]) -> None:
    """From now on call `connected`, from a thread, with every connection that knows the key. In the manager's process,
    which ends before the socket is closed."""
    args = (listening, authkey, connected)
    threading.Thread(target=_accept, args=args, daemon=True, name="accept").start()


def _accept(listening: socket.socket, authkey: bytes, connected: Callable[[Connection], None]) -> None:
    while True:
        try:
            accepted, _ = listening.accept()
        except OSError:
            time.sleep(_AGAIN_S)  # out of file descriptors, perhaps
            continue
        args = (Connection(accepted.detach()), authkey, connected)
        threading.Thread(target=_admit, args=args, daemon=True, name="admit").start()


def _admit(connection: Connection, authkey: bytes, connected: Callable[[Connection], None]) -> None:
    """Check the key, both ways. In a thread of its own: who connects and says nothing keeps nobody else out."""
    try:
        deliver_challenge(connection, authkey)
        answer_challenge(connection, authkey)
    except (OSError, EOFError, mp.AuthenticationError):
        connection.close()
    else:
        connected(connection)
