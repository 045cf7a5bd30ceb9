"""Local clusters for tests and benchmarks: a pool of rank processes that outlives the single test.

Rank bodies are plain module-level functions ``body(rank, world_size, store, *args)``; `store` is a c10d file store that
all of them share. Processes start by ``forkserver`` with torch already imported (4 ranks in half a second).
"""

from __future__ import annotations

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

from trainsys.elastic.forks import forkserver


class RankError(RuntimeError):
    """A rank body raised; the message is its traceback."""


class RankPool:
    """Processes that run rank bodies, reused from call to call."""

    def __init__(self) -> None:
        self._workers: list[tuple[mp.process.BaseProcess, Connection]] = []
        self._calls = 0
        self._folder = tempfile.TemporaryDirectory(prefix="trainsys-ranks-")

    def run(self, body: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 60.0) -> list[Any]:
        """Run `body` on `world_size` ranks and return their results in rank order.

        Raises:
            RankError: the first failing rank's traceback; all workers are replaced then.
            TimeoutError: after `timeout_s`, naming the ranks still running.
        """
        while len(self._workers) < world_size:
            self._workers.append(self._start())
        self._calls += 1
        store = str(Path(self._folder.name) / f"store-{self._calls}")
        links = {link: rank for rank, (_, link) in enumerate(self._workers[:world_size])}
        for link, rank in links.items():
            link.send((body, rank, world_size, store, args))
        results: dict[int, Any] = {}
        deadline = monotonic() + timeout_s
        while len(results) < world_size:
            ready = wait([link for link, r in links.items() if r not in results], max(0.0, deadline - monotonic()))
            if not ready:
                self.close()
                raise TimeoutError(f"ranks {sorted(set(range(world_size)) - set(results))} ran over {timeout_s} s")
            for link in [link for link in links if link in ready]:
                try:
                    ok, value = link.recv()
                except EOFError:
                    ok, value = False, f"rank {links[link]} died"
                if not ok:
                    self.close()
                    raise RankError(value)
                results[links[link]] = value
        return [results[r] for r in range(world_size)]

    def close(self) -> None:
        for process, link in self._workers:
            link.close()
            process.kill()
            process.join()
        self._workers = []

    def _start(self) -> tuple[mp.process.BaseProcess, Connection]:
        context = forkserver()
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _serve(link: Connection) -> None:
    """Body of a pool process: run what arrives until the pool closes."""
    from torch._C._distributed_c10d import FileStore

    from trainsys.comm.cores import share_cores

    share_cores()
    while True:
        try:
            body, rank, world_size, path, args = link.recv()
        except EOFError:
            return
        try:
            link.send((True, body(rank, world_size, FileStore(path, world_size), *args)))
        except Exception:
            link.send((False, f"rank {rank}:\n{traceback.format_exc()}"))
