"""The manager's process: it may die, and the agent starts another that takes over from the book."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from trainsys.config import RunConfig
from trainsys.elastic.bonds import die_with_parent, name_process
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
        world_size: ranks that work when all is well.
        resume: checkpoint folder to start from, or empty.
        start_step: optimizer steps in that checkpoint.
        faults: to inject.
    """

    config: RunConfig
    world_size: int
    resume: str = ""
    start_step: int = 0
    faults: Sequence[FaultEvent] = ()


def manage(job: Job, listening: socket.socket, authkey: bytes, agent: Connection, book: Book) -> None:
    """Body of the process: manage until the end, and tell the agent how it was.

    Args:
        listening: where workers connect.
        book: of the manager before, or a new one.
    """
    name_process("manager")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the agent decides
    die_with_parent()
    assert book.rate is not None
    config = replace(job.config, model=resolve(job.config.model))
    foresight = Foresight(config, book.rate, beside=True)  # forks: there is one thread yet
    threading.Thread(target=_leave_with_agent, daemon=True, name="parent").start()
    outbox = Outbox(agent, book, job.config.elastic.heartbeat_limit_s / 5)
    failure, bug = "", ""
    try:
        manager = Manager(
            job.config, job.world_size, outbox, book, job.resume, job.faults, foresight
        )  # fmt: skip
        manager.run(listening, authkey)
    except ElasticError as error:
        failure = str(error)
    except Exception:
        bug = traceback.format_exc()
    outbox.over(failure, bug)
    os._exit(0)


def _leave_with_agent() -> None:
    agent = multiprocessing.parent_process()
    assert agent is not None
    wait([agent.sentinel])
    os._exit(1)
