"""The control connection between a worker and the manager: framed, authenticated, ordered.

The worker's reader thread queues what arrives; a `Fault` also aborts communication at once, from that thread, because
the main thread may be blocked inside a collective.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from typing import Any, TypeVar

from trainsys.elastic.messages import Beat, Fault, Leaving, Quit, StopWanted

M = TypeVar("M")
Address = tuple[str, int] | str
_WAKING, _WAKING_S = 1000, 0.001  # looks, and seconds between them
_LEAVE_S = 5.0  # for the main thread to end after Quit


class Abandoned(Exception):
    """The manager called the current epoch off."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"abandoned for epoch {epoch}")
        self.epoch = epoch


class ControlClient:
    """A worker's end.

    Args:
        address: of the manager's listener.
        authkey: shared secret.
        beat_s: seconds between heartbeats.
        on_fault: called from the reader thread with the epoch to come.
    """

    def __init__(self, address: Address, authkey: bytes, beat_s: float, on_fault: Callable[[int], None]) -> None:
        self._connection: Connection = Client(address, authkey=authkey)
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._send_lock = threading.Lock()
        self._on_fault = on_fault
        self.epoch = -1  # entered by the worker
        self.stop_wanted = self.leave_wanted = False  # set by signal handlers; told with the next heartbeat
        self._soon = threading.Event()  # the next heartbeat is due now
        threading.Thread(target=self._read, daemon=True, name="control").start()
        threading.Thread(target=self._beat, args=(beat_s,), daemon=True, name="heartbeat").start()

    def send(self, message: Any) -> None:
        with self._send_lock:
            try:
                self._connection.send(message)
            except OSError:
                pass  # the manager is gone; the reader ends this process, or its Quit is already in the inbox

    def receive(self) -> Any:
        """The next message; blocks."""
        return self._inbox.get()

    def waiting(self, kind: type[M]) -> bool:
        """Whether the next message is there, and is a `kind`."""
        return not self._inbox.empty() and isinstance(self._inbox.queue[0], kind)

    def expect(self, kind: type[M]) -> M:
        """The next message, which must be a `kind`.

        Raises:
            Abandoned: a Fault came instead.
            SystemExit: the manager told this worker to leave.
        """
        message = self.receive()
        while isinstance(message, Fault) and message.epoch <= self.epoch:  # said twice; already entered
            message = self.receive()
        if isinstance(message, Fault):
            raise Abandoned(message.epoch)
        if isinstance(message, Quit):
            raise SystemExit(1 if message.reason else 0)
        assert isinstance(message, kind), f"expected {kind.__name__}, got {message}"
        return message

    def catch_up(self) -> None:
        """Let the reader hear all that came while this process was stopped. A rank evicted meanwhile ends here."""
        for _ in range(_WAKING):
            try:
                if not self._connection.poll(0):  # at the end of the connection there is always something to read
                    return
            except (OSError, EOFError):
                return
            time.sleep(_WAKING_S)

    def _read(self) -> None:
        message = None
        try:
            while True:
                message = self._connection.recv()
                self._inbox.put(message)
                if isinstance(message, Fault):
                    self._on_fault(message.epoch)
        except (EOFError, OSError):
            if isinstance(message, Quit):  # the manager may go first; the main thread leaves by itself
                time.sleep(_LEAVE_S)
            os._exit(1)  # the manager is gone: nobody can commit any more, and no orphan may stay

    def _beat(self, beat_s: float) -> None:
        while True:
            self._soon.clear()
            self.send(StopWanted() if self.stop_wanted else Leaving() if self.leave_wanted else Beat())
            self._soon.wait(beat_s)

    def leave(self) -> None:
        """Ask to be let go. A signal handler may call it: it takes no lock that this thread could hold."""
        self.leave_wanted = True
        threading.Thread(target=self._soon.set, daemon=True).start()
