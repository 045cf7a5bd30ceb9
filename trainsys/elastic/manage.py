"""The manager's process: it may die, and the agent starts another that takes over from the book."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

from trainsys.config import RunConfig
from trainsys.elastic.bonds import die_with_parent, leave_stopping_to_others, leave_with_parent, name_process
from trainsys.elastic.book import Book
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.foresight import Foresight
from trainsys.elastic.manager import Manager
from trainsys.elastic.outbox import Outbox
from trainsys.elastic.phase import ElasticError
from trainsys.models.geometry import resolve


@dataclass(frozen=True)
class Job:
    """What there is to do.

    Attributes:
        resume: checkpoint folder to start from, or empty.
        start_step: optimizer steps in that checkpoint.
        faults: to inject.
    """

    config: RunConfig
    resume: str = ""
    start_step: int = 0
    faults: Sequence[FaultEvent] = ()

    @property
    def world_size(self) -> int:
        """Ranks that work when all is well."""
        return self.config.cluster.nodes * self.config.cluster.ranks_per_node


def manage(job: Job, listening: socket.socket, authkey: bytes, agent: Connection, book: Book) -> None:
    """Body of the process: manage until the end, and tell the agent how it was.

    Args:
        listening: where workers connect.
        book: of the manager before, or a new one.
    """
    name_process("manager")
    leave_stopping_to_others()
    die_with_parent()
    assert book.rate is not None
    config = replace(job.config, model=resolve(job.config.model))
    foresight = Foresight(config, book.rate, beside=True)  # forks: there is one thread yet
    leave_with_parent()
    outbox = Outbox(agent, book, job.config.elastic.heartbeat_limit_s / 5)
    failure, bug = "", ""
    try:
        manager = Manager(job.config, job.world_size, outbox, book, job.resume, job.faults, foresight)
        manager.run(listening, authkey)
    except ElasticError as error:
        failure = str(error)
    except Exception:
        bug = traceback.format_exc()
    outbox.over(failure, bug)
    os._exit(0)
