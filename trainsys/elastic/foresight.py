"""Successors worked out before they are needed, in a process beside the manager, so that deciding takes milliseconds.

When a layout is chosen or stands, and when ranks have joined, it is asked what to do if any one rank, or any one node,
is lost, and of a small layout then any two: one may die while another is recovered from, or right after it. Of a
regular layout that is one question per stage, or pair of stages. The newest questions come first. The process has a low
priority, but not the lowest: ranks that compute on all cores would leave it a hundredth of one, and the next fault may
be near.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.agenda import Agenda, Answers
from trainsys.elastic.bonds import die_with_parent, leave_stopping_to_others, name_process
from trainsys.elastic.links import limit_sending
from trainsys.elastic.situation import Situation
from trainsys.planner.choose import Question, answer
from trainsys.planner.device import Rate
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages

_NICE = 5
_AT_ONCE_S = 0.02  # an answer that takes no longer is not worth waiting for such a process
_BEAT_S, _SILENT_S = 1.0, 5.0  # it says so often that it lives; is silent for so long if it does not
_READ_S = 0.1  # between two looks at what it said, at most; what is longer was no silence of its own


class Foresight:
    """What is known of the next layouts. Start it while the process has one thread: it forks.

    Args:
        beside: work out answers in a process of its own; without it, or once it has ended or is frozen, when asked.
    """

    def __init__(self, config: RunConfig, rate: Rate, beside: bool = False) -> None:
        self._config, self._rate = config, rate
        self._known = Answers()
        self._room: dict[ParallelConfig, bool] = {}
        self._takes_s = inf  # of the processor, as the slowest answer did
        self._asked = set[Question]()  # and not answered yet
        self._link: Connection | None = None
        self._read_at, self._silent_s = time.monotonic(), 0.0
        if beside:
            context = get_context("fork")
            self._link, theirs = context.Pipe()
            self._process = context.Process(target=_work_ahead, args=(config, rate, theirs, self._link), daemon=True)
            self._process.start()
            theirs.close()
            limit_sending(self._link)

    def close(self) -> None:
        """End the process."""
        if self._link is not None:
            self._link.close()
            self._link = None
            self._process.kill()
            self._process.join(1)

    def consider(self, stands: Situation) -> None:
        """See what may follow."""
        self._ask(stands)

    def has_room(self, parallel: ParallelConfig) -> bool:
        """Whether the next layout can be made beside the steps; no, until it is known."""
        self.read()
        return self._room.get(parallel, False) if self._link is not None else _has_room(self._config, parallel)

    def knows(self, asked: Question) -> bool:
        """Whether `answer` will come at once; if not, it is being worked out."""
        self.read()
        if self._link is None or self._takes_s < _AT_ONCE_S:
            return True
        if asked not in self._known and asked not in self._asked:  # once: nobody reads while an answer is worked out
            self._asked.add(asked)
            self._ask(asked)
        return asked in self._known

    def answer(self, asked: Question) -> ParallelConfig:
        """As `planner.choose.answer`, at once if it was foreseen. Raises ValueError."""
        self.read()
        found = self._known.get(asked)
        if found is None:
            return answer(self._config, asked, self._rate)
        if isinstance(found, str):
            raise ValueError(found)
        return found

    def _ask(self, about: Question | Situation) -> None:
        try:
            if self._link is not None:
                self._link.send(about)
        except OSError:
            self.close()  # it has died, or does not read: from now on answers come when they are asked for

    def read(self) -> None:
        """Take what has been answered; often, for the process waits for it to be taken."""
        try:
            while self._link is not None and self._link.poll():
                said, self._silent_s = self._link.recv(), 0.0
                if said is not None:
                    self._take(*said)
        except (EOFError, OSError):
            self.close()
        now = time.monotonic()
        self._silent_s += min(now - self._read_at, _READ_S)  # time in which this process itself did not run is forgiven
        self._read_at = now
        if self._silent_s > _SILENT_S:
            self.close()

    def _take(self, asked: Question | ParallelConfig, found: Any, seconds: float) -> None:
        if isinstance(asked, ParallelConfig):
            self._room = {asked: found}  # of the last that was considered
            return
        self._takes_s = seconds if self._takes_s == inf else max(self._takes_s, seconds)
        self._known.keep(asked, found)
        self._asked.discard(asked)


def _work_ahead(config: RunConfig, rate: Rate, link: Connection, theirs: Connection) -> None:
    """Body of the process: the newest questions first. It ends when the other end is closed.

    Args:
        theirs: that end, which a fork has too.
    """
    theirs.close()
    name_process("foresight")
    leave_stopping_to_others()
    die_with_parent()
    os.nice(_NICE)
    inbox, sends = SimpleQueue[Situation | Question](), Lock()
    Thread(target=_receive, args=(link, inbox), daemon=True).start()
    Thread(target=_beat, args=(link, sends), daemon=True).start()
    agenda = Agenda(config, rate)
    while True:
        while not agenda or not inbox.empty():
            about = inbox.get()
            if isinstance(about, Question):
                agenda.ask(about)
            else:
                _say(link, sends, (about.parallel, _has_room(config, about.parallel), 0.0))
                agenda.consider(about)
        answered = agenda.next()
        if answered is not None:
            _say(link, sends, answered)


def _receive(link: Connection, inbox: SimpleQueue[Situation | Question]) -> None:
    """Take what is asked at once: while the answer of a large cluster is worked out, the manager must not wait."""
    try:
        while True:
            inbox.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)


def _beat(link: Connection, sends: Lock) -> None:
    while True:
        _say(link, sends, None)
        time.sleep(_BEAT_S)


def _say(link: Connection, sends: Lock, what: Any) -> None:
    try:
        with sends:
            link.send(what)
    except OSError:
        os._exit(0)


def _has_room(config: RunConfig, parallel: ParallelConfig) -> bool:
    """By the planner's reckoning; who has set ``elastic.move=beside`` knows better."""
    if config.elastic.move != "auto":
        return config.elastic.move == "beside"
    config = replace(config, parallel=parallel, elastic=replace(config.elastic, move="beside"))
    try:
        memory, limit_gib = worst_stage(config, Stages.of(config.model, parallel))
    except ValueError:
        return False  # there are more ranks than in the cluster that was configured, and devices of several types
    return memory.total <= limit_gib
