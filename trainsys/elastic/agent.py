"""The local agent: starts rank processes on this machine, outlives their deaths, runs the manager."""

from __future__ import annotations

import multiprocessing as mp
import os
import queue
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, Listener

from torch._C._distributed_c10d import TCPStore

from trainsys.config import RunConfig
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.manager import Manager
from trainsys.elastic.record import Observer
from trainsys.elastic.worker import worker_main

HOST = "127.0.0.1"
PRELOAD = ["torch", "torch.distributed", "trainsys.elastic.worker"]


def forkserver() -> mp.context.ForkServerContext:
    """Start method of rank processes: a thread-free parent that has imported torch once, so that a rank starts in
    a fraction of a second."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class LocalCluster:
    """Rank processes of one job, with the listener and the store they need."""

    def __init__(self, config: RunConfig, faults: Sequence[FaultEvent] = ()) -> None:
        self._config, self._faults = config, tuple(faults)
        self._context = forkserver()
        self._authkey = secrets.token_bytes(16)
        try:
            self._store = TCPStore(
                HOST, config.elastic.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
            )
        except RuntimeError:
            raise ValueError(
                f"port {config.elastic.port} on {HOST} is busy; set elastic.port=0 for a free one"
            ) from None
        self._listener = Listener((HOST, 0), backlog=64, authkey=self._authkey)
        self._accepted: queue.Queue[Connection] = queue.Queue()
        self._processes: dict[int, mp.process.BaseProcess] = {}
        self.doorbell, self._ring = mp.Pipe(duplex=False)
        self._closed = False
        threading.Thread(target=self._accept, daemon=True, name="accept").start()

    def spawn(self, rank: int, node: int) -> None:
        process = self._context.Process(
            target=worker_main,
            name=f"rank-{rank}",
            args=(
                self._config, rank, node, self._listener.address, self._authkey,
                (HOST, self._store.port), self._faults,
            ),
        )  # fmt: skip
        process.start()
        self._processes[rank] = process

    def kill(self, rank: int) -> None:
        """SIGKILL: also ends a stopped process."""
        self._processes[rank].kill()

    def accepted(self) -> Sequence[Connection]:
        found = []
        while self.doorbell.poll():
            self.doorbell.recv_bytes()
            found.append(self._accepted.get())
        return found

    def died_early(self) -> Sequence[int]:
        return [rank for rank, process in self._processes.items() if process.exitcode not in (None, 0)]

    def close(self) -> None:
        """End every process that has not left by itself, and free the ports."""
        self._closed = True
        for process in self._processes.values():
            process.join(timeout=5)
            if process.exitcode is None:
                process.kill()
                process.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                self._accepted.put(self._listener.accept())
                self._ring.send_bytes(b"!")
            except (OSError, EOFError, mp.AuthenticationError):
                continue


def run_local(
    config: RunConfig,
    observer: Observer,
    faults: Sequence[FaultEvent] = (),
    resume: str = "",
    start_step: int = 0,
) -> None:
    """Train on a local cluster of ``nodes × ranks_per_node`` processes.

    SIGINT and SIGTERM end it at the next step boundary, with a checkpoint; a second one ends it at once.

    Raises:
        ElasticError: training could not go on.
        ValueError: the port is busy.
    """
    cluster = LocalCluster(config, faults)
    world_size = config.cluster.nodes * config.cluster.ranks_per_node
    joins = [e.step for e in faults if e.kind == "join"]
    manager = Manager(config, world_size, cluster, observer, resume, start_step, joins)
    try:
        for rank in range(world_size):
            cluster.spawn(rank, rank // config.cluster.ranks_per_node)
        with stopping_on_signals(lambda: setattr(manager, "stop_requested", True)):
            manager.run()
    finally:
        cluster.close()


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop`; the second one raises KeyboardInterrupt. Only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, old in before.items():
            signal.signal(s, old)
