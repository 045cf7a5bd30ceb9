"""Training under torchrun: what it starts and watches are keepers, and the ranks are their children.

torchrun tears everything down when one of its processes dies, and cannot be told otherwise. So a keeper does nothing
that could kill it: it forks its rank, and when that dies it tells the agent and goes on waiting. Training survives in
place, as under `trainsys train`. Only when a keeper itself dies, as with its machine, does torchrun end all of them;
with ``--max-restarts`` it starts them again and they resume from the newest checkpoint.

The agent is a process that the keeper of rank 0 starts. Keepers learn its address, take its orders and tell it of
deaths through torchrun's own store, under keys of this attempt. Process groups connect through the agent's store, which
is new in every attempt, so a restart never meets the addresses of the dead.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from torch._C._distributed_c10d import Store, TCPStore

from trainsys.comm.lookups import retry_soon
from trainsys.config import RunConfig
from trainsys.elastic.endpoint import Rendezvous
from trainsys.elastic.forks import forkserver
from trainsys.elastic.run_job import GRACE_S, stopping_on_signals
from trainsys.elastic.serve import rank_main
from trainsys.elastic.torchrun_agent import Desk, agent_main

_TICK_S = 0.05


@dataclass(frozen=True)
class Place:
    """What torchrun tells this process."""

    rank: int
    world_size: int
    node: int
    master: tuple[str, int]
    attempt: str
    agent_hosts_store: bool

    @staticmethod
    def here() -> Place:
        env = os.environ
        return Place(
            int(env["RANK"]),
            int(env["WORLD_SIZE"]),
            int(env.get("GROUP_RANK", "0")),
            (env["MASTER_ADDR"], int(env["MASTER_PORT"])),
            f"{env['TORCHELASTIC_RUN_ID']}/{env.get('TORCHELASTIC_RESTART_COUNT', '0')}",
            env.get("TORCHELASTIC_USE_AGENT_STORE", "True") == "True",
        )

    def store(self) -> Store:
        """torchrun's store; where its agent hosts none (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), rank 0 does."""
        retry_soon()
        hosts = self.rank == 0 and not self.agent_hosts_store
        return TCPStore(*self.master, is_master=hosts, wait_for_workers=False, timeout=timedelta(seconds=120))


def join_torchrun(config: RunConfig) -> int:
    """This process's part of the job: keep its rank, and on rank 0 the agent too. Returns the exit code.

    Raises:
        ValueError: torchrun's world size is not the cluster's, or a checkpoint of another model is in the way.
    """
    if config.train.emulate:
        raise ValueError("train.emulate=true emulates a cluster on one machine; use trainsys train, without torchrun")
    if config.elastic.spares:
        raise ValueError(
            f"elastic.spares={config.elastic.spares}: torchrun starts as many ranks as it was told to; "
            "set elastic.spares=0, or take another launcher"
        )
    place = Place.here()
    ranks = config.cluster.nodes * config.cluster.ranks_per_node
    if ranks != place.world_size:
        raise ValueError(
            f"torchrun started {place.world_size} rank{'s'[: place.world_size != 1]} but "
            f"cluster.nodes*cluster.ranks_per_node={ranks}; "
            f"set cluster.nodes and cluster.ranks_per_node, or --nproc-per-node {ranks}"
        )
    shared, prefix = place.store(), f"trainsys/{place.attempt}"
    desk, agent = Desk(shared, prefix), None
    if place.rank == 0:
        context = forkserver()
        ours, theirs = context.Pipe()
        agent = context.Process(target=agent_main, args=(config, place.world_size, place.master, prefix, theirs))
        agent.start()
        theirs.close()
        rendezvous = _answer(ours)
        shared.set(f"{prefix}/rendezvous", base64.b64encode(pickle.dumps(rendezvous)).decode())
    rendezvous = pickle.loads(base64.b64decode(shared.get(f"{prefix}/rendezvous")))
    if rendezvous is None:
        return 0
    return Keeper(config, place, desk, rendezvous, agent).run()


class Keeper:
    """One process of torchrun's.

    Args:
        agent: the agent's process, on rank 0.
    """

    def __init__(
        self, config: RunConfig, place: Place, desk: Desk, rendezvous: Rendezvous, agent: BaseProcess | None
    ) -> None:
        self._config, self._place, self._desk, self._agent = config, place, desk, agent
        self._rendezvous = rendezvous
        self._ranks: dict[int, BaseProcess] = {}
        self._told: set[int] = set()
        self._asked = False

    def run(self) -> int:
        """Keep ranks until the agent says that it is over. Returns the exit code."""
        with stopping_on_signals(self._stop):
            self._start(self._place.rank)
            code = None
            while code is None:
                for verb, rank in self._desk.orders(self._place.rank):
                    if verb == "spawn":
                        self._start(rank)
                    elif rank in self._ranks:
                        self._ranks[rank].kill()
                for rank, process in self._ranks.items():
                    if process.exitcode is not None and rank not in self._told:
                        self._told.add(rank)
                        self._desk.tell_end(rank)
                code = self._desk.outcome()
                if self._agent is not None and self._agent.exitcode is not None and code is None:
                    code = 1
                    self._desk.tell_outcome(code)
                    if self._agent.exitcode < 0:  # else it has said why
                        name = signal.Signals(-self._agent.exitcode).name
                        print(f"trainsys: the agent ended ({name}); start again to resume", file=sys.stderr, flush=True)
                time.sleep(_TICK_S)
        self._close(code)
        return code

    def _stop(self) -> None:
        """SIGTERM or SIGINT from torchrun: the job ends at the next step boundary."""
        self._desk.stop()

    def _start(self, rank: int) -> None:
        """Fork: torch is imported already."""
        process = get_context("fork").Process(
            target=rank_main, args=(self._config, rank, self._place.node, self._rendezvous), name=f"rank-{rank}"
        )
        process.start()
        self._ranks[rank] = process

    def _close(self, code: int) -> None:
        until = time.monotonic() + (GRACE_S if code == 0 else 0.0)
        processes: list[Any] = [*self._ranks.values(), *([self._agent] if self._agent else [])]
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.exitcode is None:
                process.kill()


def _answer(link: Connection) -> Rendezvous | None:
    """Where the manager listens, None when nothing is left to train; ValueError with its reason when it could not."""
    answer = link.recv()
    if isinstance(answer, str):
        raise ValueError(answer)
    assert answer is None or isinstance(answer, Rendezvous)
    return answer
