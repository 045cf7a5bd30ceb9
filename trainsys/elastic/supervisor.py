"""The agent's side of the manager: start it, keep its books, do what it asks, and put another in its place if it dies.

The agent decides nothing. So the one process that must not die does the least that can be done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trainsys.elastic.book import Book
from trainsys.elastic.endpoint import Endpoint
from trainsys.elastic.files import JsonLines
from trainsys.elastic.forks import forkserver
from trainsys.elastic.history import FOLDER
from trainsys.elastic.manage import Job, manage
from trainsys.elastic.member import Launcher
from trainsys.elastic.outbox import ENDED, ROOM, STOP, TAKEN
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.record import Observer
from trainsys.planner.device import rate

_TICK_S = 0.02
_MOST = 5  # managers lost with no step in between: then it is no accident


class Supervisor:
    """Keeps one job managed.

    Args:
        launcher: of rank processes; the first ones are already on their way.

    Attributes:
        stop_requested: end at the next step boundary, with a checkpoint; may be set by a signal handler.
        book: as entered last.
    """

    def __init__(self, job: Job, endpoint: Endpoint, launcher: Launcher, observer: Observer) -> None:
        config = job.config
        self._job, self._endpoint, self._launcher, self._observer = job, endpoint, launcher, observer
        self._limit_s = config.elastic.heartbeat_limit_s
        self.stop_requested = False
        started = tuple(range(job.world_size + config.elastic.spares))
        self.book = Book(
            run=secrets.token_hex(4) if config.elastic.history else "", rate=rate(config.cluster, job.world_size),
            step=job.start_step, saved_step=job.start_step, started=started, next_rank=len(started),
            joins=tuple(sorted(e.step for e in job.faults if e.kind == "join")),
        )  # fmt: skip
        self._history = self._begin_history()
        self._lost_at_step: list[int] = []
        self._room: list[int] = []  # offered, and not taken yet
        self._unborn: list[int] = []  # ranks that could not be started

    def run(self) -> None:
        """Until the job is over.

        Raises:
            ElasticError: training could not go on.
        """
        try:
            while True:
                process, link = self._start()
                try:
                    ended = self._attend(process, link)
                finally:
                    process.kill()
                    process.join()
                    link.close()
                if ended:
                    return
        finally:
            if self._history is not None:
                self._history.close()

    @property
    def told(self) -> bool:
        """Whether every rank was told to leave after it had joined."""
        return self.book.over and self.book.layout is not None

    # -- one manager ---------------------------------------------------------------------------------------------

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = forkserver()
        ours, theirs = context.Pipe()
        args = (self._job, self._endpoint.socket, self._endpoint.rendezvous.authkey, theirs, self.book)
        process = context.Process(target=manage, args=args, name="manager")
        process.start()
        theirs.close()
        for node in self._room:
            ours.send((ROOM, node))
        return process, ours

    def _attend(self, process: BaseProcess, link: Connection) -> bool:
        """Take what it says until it is over, or the manager is. Returns which. Raises ElasticError."""
        heard, told, asked = time.monotonic(), set[int](), False
        limit_s = self._job.config.elastic.start_limit_s  # until it has said something
        while True:
            try:
                tick_s = _TICK_S
                while (said := _next(link, tick_s)) is not None:
                    tick_s, limit_s = 0.0, self._limit_s
                    if said and self._enter(*said):
                        return True
                    if said:
                        _say(link, TAKEN)
                    heard = time.monotonic()  # not before: entering takes this process's own time
                for rank in {*self._launcher.ended(), *self._unborn} - told:
                    told.add(rank)
                    _say(link, ENDED, rank)
                for node in self._launcher.room() if self.book.layout else ():
                    self._room.append(node)
                    _say(link, ROOM, node)
                if self.stop_requested and not asked:
                    asked = True
                    _say(link, STOP)
                silent = time.monotonic() - heard > limit_s and not link.poll()
            except _Gone:
                return self._end(process, link, "exit", heard)
            if silent:
                return self._end(process, link, "hang", heard)

    def _end(self, process: BaseProcess, link: Connection, cause: str, heard: float) -> bool:
        """It is lost, and fenced: what it has said counts, and it says no more. Returns whether that was all."""
        process.kill()
        over = False
        with suppress(_Gone):
            while not over:
                said = _next(link, None)
                over = bool(said) and self._enter(*said)
        if not over:
            self._lost(cause, heard)
        return over

    def _lost(self, cause: str, heard: float) -> None:
        book = self.book
        self._lost_at_step = [step for step in self._lost_at_step if step == book.step] + [book.step]
        if len(self._lost_at_step) == _MOST:
            raise ElasticError(f"{_MOST} managers were lost at step {book.step}; restart to resume from a checkpoint")
        self.book = replace(book, heard=heard)
        self._observer.manager_lost(cause, book.step, heard)

    # -- what it says --------------------------------------------------------------------------------------------

    def _enter(self, changed: Mapping[str, Any], entries: list[tuple[str, tuple[Any, ...]]]) -> bool:
        """One message: first what counts, then what follows from it. Returns whether it is the last."""
        self.book = replace(self.book, **changed)
        for what, about in entries:
            match what:
                case "line":
                    if self._history is not None:
                        self._history.add(*about)
                case "spawn":
                    self._spawn(*about)
                case "kill" if about[0] not in self._unborn:
                    self._launcher.kill(*about)
                case "took":
                    self._room.remove(*about)
                case "over":
                    failure, bug = about
                    if bug:
                        raise RuntimeError(f"the manager failed:\n{bug}")
                    if failure:
                        raise ElasticError(failure)
                    return True
                case _:
                    getattr(self._observer, what)(*about)
        return False

    def _spawn(self, rank: int, node: int) -> None:
        """A machine that has no room for one more process is no reason to end those that work."""
        try:
            self._launcher.spawn(rank, node)
        except OSError as error:
            self._unborn.append(rank)
            self._observer.never_joined(rank, f"could not be started: {error}")

    def _begin_history(self) -> JsonLines | None:
        """A run that starts over drops the histories before it."""
        folder = Path(self._job.config.run_dir) / FOLDER
        if not self._job.start_step:
            for kind in ("manager", "rank"):
                for path in folder.glob(f"{kind}-*.jsonl"):
                    path.unlink()
        if not self.book.run:
            return None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return JsonLines(folder / f"manager-{self.book.run}.jsonl", False, lambda sentence: None)
        except OSError:
            return None  # a full disk stops no training; a check tells of what is missing


class _Gone(Exception):
    """The manager is."""


def _next(link: Connection, within_s: float | None) -> Any:
    """What it says next, () for a sign of life, None if nothing came; without `within_s` until it is gone."""
    try:
        return link.recv() or () if within_s is None or link.poll(within_s) else None
    except (EOFError, OSError):
        raise _Gone from None


def _say(link: Connection, *message: Any) -> None:
    try:
        link.send(message)
    except OSError:
        raise _Gone from None
