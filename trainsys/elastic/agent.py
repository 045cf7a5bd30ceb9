"""The local agent: starts rank processes on this machine, and outlives their deaths."""

from __future__ import annotations

import multiprocessing as mp
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import cast

from trainsys.config import RunConfig
from trainsys.elastic.clocks.registry import open_clocks
from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.faults.driver import driven
from trainsys.elastic.faults.poisson import Stroke
from trainsys.elastic.faults.zombies import Zombies
from trainsys.elastic.forks import forkserver
from trainsys.elastic.manage import Job
from trainsys.elastic.record import Observer
from trainsys.elastic.run_job import run_job
from trainsys.elastic.serve import rank_main
from trainsys.elastic.supervisor import Supervisor

HOST = "127.0.0.1"


class LocalCluster:
    """Rank processes of one job on this machine."""

    def __init__(self, config: RunConfig, endpoint: Endpoint, faults: Sequence[FaultEvent] = ()) -> None:
        self._config, self._endpoint, self._faults = config, endpoint, tuple(faults)
        self._processes: dict[int, mp.process.BaseProcess] = {}
        self._ended = set[int]()
        self._wanted = SimpleQueue[int]()  # nodes
        self._clocks = open_clocks(config)  # as they are now: a rank that is killed puts nothing back
        self._zombies = Zombies(faults, Path(config.run_dir) / "faults")

    def spawn(self, rank: int, node: int) -> None:
        process = forkserver().Process(
            target=rank_main,
            name=f"rank-{rank}",
            args=(self._config, rank, node, self._endpoint.rendezvous, self._faults),
        )
        process.start()
        self._processes[rank] = process

    def kill(self, rank: int) -> None:
        """SIGKILL: also ends a stopped process."""
        if not self._zombies.spare(rank, self._processes[rank]):
            self._processes[rank].kill()

    def processes(self) -> dict[int, int]:
        """Rank -> process, of those that have not ended."""
        return {rank: process.pid or 0 for rank, process in list(self._processes.items()) if process.is_alive()}

    def ended(self) -> Sequence[int]:
        """Asked many times a second: one system call for all that live."""
        living = {p.sentinel: rank for rank, p in self._processes.items() if rank not in self._ended}
        self._ended |= {living[cast(int, sentinel)] for sentinel in wait(living, timeout=0)}
        return sorted(self._ended)

    def room(self) -> Sequence[int]:
        """This machine does not grow, unless faults by the clock say so."""
        return [self._wanted.get() for _ in range(self._wanted.qsize())]

    def want(self, node: int) -> None:
        """Have a fresh rank started; may be called from another thread."""
        self._wanted.put(node)

    def close(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for the processes to leave, then end those still there; clocks are as before."""
        deadline = time.monotonic() + grace_s
        self._zombies.join(grace_s)
        for process in self._processes.values():
            process.join(timeout=max(0.0, deadline - time.monotonic()))
        for process in self._processes.values():
            if process.exitcode is None:
                process.kill()
                process.join()
        for clock in self._clocks:
            clock.reset()


def run_local(
    config: RunConfig,
    observer: Observer,
    faults: Sequence[FaultEvent] = (),
    resume: str = "",
    start_step: int = 0,
    strokes: Iterable[Stroke] = (),
) -> None:
    """Train on a local cluster of ``nodes × ranks_per_node`` processes.

    `faults` strike by step, inside the ranks; `strokes` by the clock, from here. Signals and errors as of `run_job`.
    """

    def beside(cluster: LocalCluster, supervisor: Supervisor) -> AbstractContextManager[None]:
        return driven(strokes, config, cluster.processes, lambda: supervisor.book.step, cluster.want)

    job = Job(config, resume, start_step, tuple(faults))
    run_job(job, observer, HOST, lambda endpoint: LocalCluster(config, endpoint, faults), beside)
