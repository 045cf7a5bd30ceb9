"""One job on one cluster, whatever starts its ranks: the first ranks, a manager, and a way to ask for the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from typing import Protocol, TypeVar

from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.manage import Job
from trainsys.elastic.member import Launcher
from trainsys.elastic.record import Observer
from trainsys.elastic.supervisor import Supervisor

GRACE_S = 5.0  # for ranks that were told to leave


class Cluster(Launcher, Protocol):
    """Rank processes of one job."""

    def close(self, grace_s: float) -> None:
        """Wait up to `grace_s` seconds for them to leave, then end those that are still there."""


C = TypeVar("C", bound=Cluster)


def run_job(
    job: Job,
    observer: Observer,
    host: str,
    open_cluster: Callable[[Endpoint], C],
    beside: Callable[[C, Supervisor], AbstractContextManager[None]] = lambda cluster, supervisor: nullcontext(),
) -> None:
    """Start the first ranks on a cluster, and keep the job managed until it is over.

    SIGINT and SIGTERM end it at the next step boundary, with a checkpoint; a second one ends it at once.

    Args:
        host: where ranks connect.
        beside: what goes on meanwhile.

    Raises:
        ElasticError: training could not go on.
        ValueError: the port is busy, or there can be no such cluster.
    """
    supervisor: Supervisor | None = None
    asked = False

    def stop() -> None:
        nonlocal asked
        asked = True
        if supervisor is not None:
            supervisor.stop_requested = True

    with stopping_on_signals(stop), closing(Endpoint(host, job.config.elastic.port)) as endpoint:
        cluster = open_cluster(endpoint)
        try:
            supervisor = Supervisor(job, endpoint, cluster, observer)
            supervisor.stop_requested = asked
            shape = job.config.cluster
            for rank in range(job.world_size + job.config.elastic.spares):
                cluster.spawn(rank, rank // shape.ranks_per_node % shape.nodes)
            with beside(cluster, supervisor):
                supervisor.run()
        finally:
            endpoint.close_door()
            told = supervisor is not None and supervisor.told
            cluster.close(GRACE_S if told else 0.0)  # interrupted: nobody was told to leave


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
