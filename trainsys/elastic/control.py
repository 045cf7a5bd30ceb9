"""The control connection between a worker and the manager: framed, authenticated, ordered.

The worker's reader thread queues what arrives; a `Fault` also aborts communication at once, from that thread, because
the main thread may be blocked inside a collective. When the manager is lost the thread connects to its successor and
says what it heard last; the main thread does not notice, and is called off like after any other loss.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from typing import Any, TypeVar

from trainsys.elastic.messages import Beat, CommitEpoch, Fault, Hello, Leaving, Open, Quit, StopWanted, Verdict

M = TypeVar("M")
Address = tuple[str, int] | str
_WAKING, _WAKING_S = 1000, 0.001  # looks, and seconds between them
GIVEN_UP = "it was given up"  # to a rank that was evicted
_LEAVE_S = 5.0  # for the main thread to end after Quit
_AGAIN_S = 0.02


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
        hello: what it says first.
        beat_s: seconds between heartbeats.
        on_fault: called from the reader thread with the epoch to come.
        limit_s: how long there may be no manager; then the process ends.

    Raises:
        ConnectionError: nobody listens any more, or there was no manager for so long.
    """

    def __init__(
        self, address: Address, authkey: bytes, hello: Hello, beat_s: float, on_fault: Callable[[int], None],
        limit_s: float,
    ) -> None:  # fmt: skip
        self._address, self._authkey, self._hello, self._limit_s = address, authkey, hello, limit_s
        self._connection = self._connect(hello)
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._send_lock = threading.Lock()
        self._lost = False  # the connection, and nothing was heard from another manager yet
        self._on_fault = on_fault
        self.epoch = -1  # entered by the worker
        self.stop_wanted = self.leave_wanted = False  # set by signal handlers; told with the next heartbeat
        self.beat: Callable[[], Beat] = Beat  # the next one
        self.pause_s: Callable[[], float] = lambda: beat_s  # until the one after it
        self._soon = threading.Event()  # the next heartbeat is due now
        threading.Thread(target=self._read, daemon=True, name="control").start()
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def send(self, message: Any) -> None:
        with self._send_lock:
            try:
                self._connection.send(message)
            except OSError:
                pass  # it is gone: whatever this says of the epoch is void, or its Quit is already in the inbox

    def receive(self) -> Any:
        """The next message; blocks. Raises what another thread told by `fail`."""
        message = self._inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    def fail(self, error: Exception) -> None:
        """From another thread: have the main one raise `error` where it waits for a message."""
        self._inbox.put(error)

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
                if not (self._lost or self._connection.poll(0)):  # at the end of it there is always something to read
                    return
            except (OSError, EOFError):
                pass  # it is being replaced
            time.sleep(_WAKING_S)

    def _read(self) -> None:
        message = None
        while True:
            try:
                while True:
                    message = self._connection.recv()
                    self._lost = False
                    if message == Quit(GIVEN_UP):
                        os._exit(1)  # a zombie: whatever its main thread is about to do, it has no effect
                    self._note(message)
                    self._inbox.put(message)
                    if isinstance(message, Fault):
                        self._on_fault(message.epoch)
            except (EOFError, OSError):
                self._lost = True
                if isinstance(message, Quit):  # the manager may go first; the main thread leaves by itself
                    time.sleep(_LEAVE_S)
                    os._exit(1)
            self._return()

    def _note(self, message: Any) -> None:
        """What a new manager must know of this worker: it was told nothing later."""
        match message:
            case Open(step=step):
                self._hello = replace(self._hello, steps=max(step, self._hello.steps))
            case CommitEpoch(epoch=epoch):
                self._hello = replace(self._hello, switched=epoch)
            case Verdict(decision=decision):
                self._hello = replace(self._hello, steps=decision.step + 1)

    def _return(self) -> None:
        """Find the manager that took over. Nobody can commit meanwhile; without one this process ends."""
        try:
            connection = self._connect(replace(self._hello, again=True))
        except ConnectionError:
            os._exit(1)
        with self._send_lock:
            self._connection.close()
            self._connection = connection

    def _connect(self, hello: Hello) -> Connection:
        """To the manager there is, or the next one: it may die while it checks the key."""
        until = time.monotonic() + self._limit_s
        while time.monotonic() < until:
            try:
                connection: Connection = Client(self._address, authkey=self._authkey)
                connection.send(hello)
            except ConnectionRefusedError:
                raise
            except (EOFError, OSError, AuthenticationError):
                time.sleep(_AGAIN_S)
            else:
                return connection
        raise ConnectionError(f"no manager for {self._limit_s:g} s")

    def _beat(self) -> None:
        while True:
            self._soon.clear()
            self.send(self.beat())
            if self.stop_wanted or self.leave_wanted:
                self.send(StopWanted() if self.stop_wanted else Leaving())
            self._soon.wait(self.pause_s())

    def leave(self) -> None:
        """Ask to be let go. A signal handler may call it: it takes no lock that this thread could hold."""
        self.leave_wanted = True
        threading.Thread(target=self._soon.set, daemon=True).start()
