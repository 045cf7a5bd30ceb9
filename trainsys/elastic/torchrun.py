"""Training under torchrun: the same workers and manager, without an agent of ours.

torchrun owns the processes and tears all of them down when one dies, so a death ends the job here; with
``--max-restarts`` torchrun starts it again and it resumes from the newest checkpoint. The manager runs in a process
that rank 0 starts; the others learn its address through torchrun's own store. Process groups connect through the
manager's store, which is new in every attempt, so a restart never meets the addresses of the dead.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

from torch._C._distributed_c10d import Store, TCPStore

from trainsys.comm.lookups import retry_soon
from trainsys.config import RunConfig
from trainsys.elastic.claim import claimed
from trainsys.elastic.endpoint import Endpoint, Rendezvous
from trainsys.elastic.forks import forkserver
from trainsys.elastic.manage import Job
from trainsys.elastic.manager import ElasticError
from trainsys.elastic.measured import tell_comparison, write_timelines
from trainsys.elastic.recorder import Recorder
from trainsys.elastic.resume import announce, ending, newest
from trainsys.elastic.serve import serve
from trainsys.elastic.supervisor import Supervisor


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
    """This process's part of the job: its rank, and on rank 0 the manager too. Returns the exit code.

    After a failure the process ends inside this call: destructors of torn process groups would wait for dead peers.

    Raises:
        ValueError: torchrun's world size is not the cluster's, or a checkpoint of another model is in the way.
    """
    if config.train.emulate:
        raise ValueError("train.emulate=true emulates a cluster on one machine; use trainsys train, without torchrun")
    place = Place.here()
    ranks = config.cluster.nodes * config.cluster.ranks_per_node
    if ranks != place.world_size:
        raise ValueError(
            f"torchrun started {place.world_size} rank{'s'[: place.world_size != 1]} but "
            f"cluster.nodes*cluster.ranks_per_node={ranks}; "
            f"set cluster.nodes and cluster.ranks_per_node, or --nproc-per-node {ranks}"
        )
    shared, key = place.store(), f"trainsys/{place.attempt}"
    manager = None
    if place.rank == 0:
        context = forkserver()
        ours, theirs = context.Pipe()
        manager = context.Process(target=manage, args=(config, place.world_size, place.master[0], theirs))
        manager.start()
        theirs.close()
        rendezvous = _answer(ours)
        shared.set(key, base64.b64encode(pickle.dumps(rendezvous)).decode())
    rendezvous = pickle.loads(base64.b64decode(shared.get(key)))
    if rendezvous is None:
        return 0
    code = serve(config, place.rank, place.node, rendezvous, stop_on=(signal.SIGTERM, signal.SIGINT))
    if manager is not None:
        manager.join(timeout=30)
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def _answer(link: Connection) -> Rendezvous | None:
    """Where the manager listens, None when nothing is left to train; ValueError with its reason when it could not."""
    answer = link.recv()
    if isinstance(answer, str):
        raise ValueError(answer)
    assert answer is None or isinstance(answer, Rendezvous)
    return answer


def manage(config: RunConfig, world_size: int, host: str, rank_0: Connection) -> None:
    """Body of the manager's process.

    Args:
        rank_0: told the address; its end closes when rank 0 ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # torchrun signals the ranks; they tell the manager
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    try:
        with ExitStack() as stack:
            stack.enter_context(claimed(config))
            found = newest(config)
            if not announce(config, found, partial(console.print, markup=False)):
                rank_0.send(None)
                return
            recorder = stack.enter_context(Recorder(config, config.run_dir, console, found.step))
            endpoint = Endpoint(host, config.elastic.port)
            rank_0.send(endpoint.rendezvous)
            ours = stack.pop_all()
    except (ValueError, OSError) as error:
        rank_0.send(str(error))
        return
    with ours:
        job = Job(config, world_size, found.path, found.step, elastic=False)
        try:
            Supervisor(job, endpoint, Torchrun(rank_0), recorder).run()
            console.print(ending(recorder, found), markup=False)
            comparison = write_timelines(config, recorder)
            if comparison is not None:
                recorder.compared(comparison)
                console.print(tell_comparison(comparison), markup=False)
        except ElasticError as error:
            print(f"trainsys: {error}", file=sys.stderr, flush=True)


class Torchrun:
    """A launcher that cannot start or fence anything: torchrun does."""

    def __init__(self, rank_0: Connection) -> None:
        self._rank_0 = rank_0

    def spawn(self, rank: int, node: int) -> None:
        raise AssertionError("torchrun starts the ranks")

    def kill(self, rank: int) -> None:
        return None

    def room(self) -> Sequence[int]:
        """torchrun's."""
        return ()

    def ended(self) -> Sequence[int]:
        """Rank 0 once its process has ended: without it nobody would wait for this manager."""
        return (0,) if self._rank_0.poll() else ()
