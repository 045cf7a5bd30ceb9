"""The agent of a job under torchrun: it asks keepers, through torchrun's store, to start and to fence ranks."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

from torch._C._distributed_c10d import Store, TCPStore

from trainsys.config import RunConfig
from trainsys.elastic.bonds import leave_stopping_to_others, name_process
from trainsys.elastic.claim import claimed
from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.manage import Job
from trainsys.elastic.measured import tell_comparison, write_timelines
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder
from trainsys.elastic.resume import announce, ending, newest
from trainsys.elastic.supervisor import Supervisor

_LOOK_S = 0.1


class Desk:
    """What keepers and the agent leave for each other in a store: lists that only grow, and a word at the end.

    Args:
        prefix: of the keys; new in every attempt.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix, self._read = store, prefix, dict[str, int]()

    def order(self, keeper: int, verb: str, rank: int) -> None:
        """Have a keeper ``spawn`` or ``kill`` a rank."""
        self._put(f"orders/{keeper}", f"{verb} {rank}")

    def orders(self, keeper: int) -> Iterator[tuple[str, int]]:
        """(verb, rank) of orders not read before."""
        for text in self._take(f"orders/{keeper}"):
            verb, _, rank = text.partition(" ")
            yield verb, int(rank)

    def tell_end(self, rank: int) -> None:
        """A rank's process has ended."""
        self._put("ended", str(rank))

    def ends(self) -> Iterator[int]:
        """Ranks that ended, not read before."""
        return map(int, self._take("ended"))

    def stop(self) -> None:
        """Ask for an end at the next step boundary."""
        self._store.set(f"{self._prefix}/stop", "1")

    def stop_wanted(self) -> bool:
        return bool(self._store.check([f"{self._prefix}/stop"]))

    def tell_outcome(self, code: int) -> None:
        """It is over."""
        self._store.set(f"{self._prefix}/outcome", str(code))

    def outcome(self) -> int | None:
        """The exit code; None before the end."""
        key = f"{self._prefix}/outcome"
        return int(self._store.get(key)) if self._store.check([key]) else None

    def _put(self, name: str, text: str) -> None:
        number = self._store.add(f"{self._prefix}/{name}/count", 1)
        self._store.set(f"{self._prefix}/{name}/{number}", text)

    def _take(self, name: str) -> Iterator[str]:
        while self._store.check([f"{self._prefix}/{name}/{self._read.get(name, 0) + 1}"]):
            self._read[name] = self._read.get(name, 0) + 1
            yield self._store.get(f"{self._prefix}/{name}/{self._read[name]}").decode()


class Torchrun:
    """Rank processes that keepers start: the first ones by themselves, later ones for the agent.

    Args:
        rank_0: its end closes when the keeper of rank 0 ends, and with it the job.
    """

    def __init__(self, config: RunConfig, world_size: int, desk: Desk, rank_0: Connection) -> None:
        self._per_node, self._world_size, self._desk, self._rank_0 = (
            config.cluster.ranks_per_node, world_size, desk, rank_0,
        )  # fmt: skip
        self._keeper = {rank: rank for rank in range(world_size)}
        self._ended: list[int] = []
        self._looked = 0.0
        self.supervisor: Supervisor | None = None

    def spawn(self, rank: int, node: int) -> None:
        """On the node's keepers in turn."""
        first = node * self._per_node % self._world_size
        self._keeper[rank] = first + rank % self._per_node
        self._desk.order(self._keeper[rank], "spawn", rank)

    def kill(self, rank: int) -> None:
        self._desk.order(self._keeper[rank], "kill", rank)

    def room(self) -> Sequence[int]:
        """torchrun starts everything anew when a node comes."""
        return ()

    def ended(self) -> Sequence[int]:
        """As the keepers tell."""
        if self._rank_0.poll():
            raise ElasticError("the process that torchrun started for rank 0 has ended")
        if time.monotonic() - self._looked > _LOOK_S:
            self._looked = time.monotonic()
            self._ended += self._desk.ends()
            if self.supervisor is not None and self._desk.stop_wanted():
                self.supervisor.stop_requested = True
        return tuple(self._ended)


def agent_main(
    config: RunConfig, world_size: int, master: tuple[str, int], prefix: str, rank_0: Connection
) -> None:  # fmt: skip
    """Body of the agent's process.

    Args:
        master: address of torchrun's store.
        rank_0: told where ranks connect, None when nothing is left to train, or why it could not be.
    """
    name_process("agent")
    leave_stopping_to_others()  # torchrun signals the keepers; they tell
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    desk = Desk(TCPStore(*master, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=120)), prefix)
    try:
        with ExitStack() as stack:
            stack.enter_context(claimed(config))
            found = newest(config)
            if not announce(config, found, partial(console.print, markup=False)):
                rank_0.send(None)
                return
            recorder = stack.enter_context(Recorder(config, config.run_dir, console, found.step))
            endpoint = Endpoint(master[0], config.elastic.port)
            rank_0.send(endpoint.rendezvous)
            ours = stack.pop_all()
    except (ValueError, OSError) as error:
        rank_0.send(str(error))
        return
    with ours:
        launcher = Torchrun(config, world_size, desk, rank_0)
        supervisor = Supervisor(Job(config, found.path, found.step), endpoint, launcher, recorder)
        launcher.supervisor = supervisor
        code = 1
        try:
            supervisor.run()
            code = 0
            console.print(ending(recorder, found, "the same torchrun"), markup=False)
            comparison = write_timelines(config, recorder)
            if comparison is not None:
                recorder.compared(comparison)
                console.print(tell_comparison(comparison), markup=False)
        except ElasticError as error:
            print(f"trainsys: {error}", file=sys.stderr, flush=True)
        finally:
            desk.tell_outcome(code)
