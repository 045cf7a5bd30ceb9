"""Training under torchrun: the same workers and manager, without an agent of ours.

torchrun owns the processes and tears all of them down when one dies, so a death ends the job here; with
``--max-restarts`` torchrun starts it again and it resumes from the newest checkpoint. The manager runs in a process
that rank 0 starts; the others learn its address through torchrun's own store.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection

from torch._C._distributed_c10d import TCPStore

from trainsys.config import RunConfig
from trainsys.elastic.agent import forkserver
from trainsys.elastic.endpoint import Endpoint, Rendezvous
from trainsys.elastic.manager import ElasticError, Manager
from trainsys.elastic.manifest import find_checkpoint
from trainsys.elastic.record import Observer
from trainsys.elastic.worker import serve

MakeObserver = Callable[[RunConfig], Observer]


def in_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_RANK" in os.environ


def join_torchrun(config: RunConfig, make_observer: MakeObserver) -> int:
    """This process's part of the job: its rank, and on rank 0 the manager too. Returns the exit code.

    Raises:
        ValueError: torchrun's world size is not the cluster's.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = config.cluster.nodes * config.cluster.ranks_per_node
    if ranks != world_size:
        raise ValueError(
            f"torchrun started {world_size} ranks but cluster.nodes*ranks_per_node={ranks}; "
            f"set cluster.nodes and cluster.ranks_per_node, or --nproc-per-node {ranks}"
        )
    shared = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    key = f"trainsys/{os.environ['TORCHELASTIC_RUN_ID']}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    manager = None
    if rank == 0:
        context = forkserver()
        ours, theirs = context.Pipe()
        manager = context.Process(
            target=manage, args=(config, world_size, os.environ["MASTER_ADDR"], make_observer, theirs)
        )
        manager.start()
        shared.set(key, base64.b64encode(pickle.dumps(ours.recv())).decode())
    rendezvous: Rendezvous = pickle.loads(base64.b64decode(shared.get(key)))
    node = int(os.environ.get("GROUP_RANK", "0"))
    code = serve(config, rank, node, rendezvous, stop_on=(signal.SIGTERM, signal.SIGINT))
    if manager is not None:
        manager.join(timeout=30)
    return code


def manage(config: RunConfig, world_size: int, host: str, make_observer: MakeObserver, started: Connection) -> None:
    """Body of the manager's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found = find_checkpoint(config) if config.checkpoint.resume else None
    endpoint = Endpoint(host, 0)
    started.send(endpoint.rendezvous)
    path, step = (found.path, found.step) if found else ("", 0)
    manager = Manager(config, world_size, endpoint, Torchrun(), make_observer(config), path, step, elastic=False)
    try:
        manager.run()
    except ElasticError as error:
        print(f"trainsys: {error}", flush=True)


class Torchrun:
    """A launcher that cannot start or fence anything: torchrun does."""

    def spawn(self, rank: int, node: int) -> None:
        raise AssertionError("torchrun starts the ranks")

    def kill(self, rank: int) -> None:
        return None

    def died_early(self) -> Sequence[int]:
        return ()
