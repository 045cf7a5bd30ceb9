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
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.bonds import die_with_parent, leave_stopping_to_others, name_process
from trainsys.elastic.situation import Situation
from trainsys.planner.choose import Question, answer, choose, question
from trainsys.planner.device import Rate
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages

_NICE = 5
_AT_ONCE_S = 0.02  # an answer that takes no longer is not worth waiting for such a process
_KEPT = 4096  # answers


class Foresight:
    """What is known of the next layouts. Start it while the process has one thread: it forks.

    Args:
        beside: work out answers in a process of its own; without it, only when asked.
    """

    def __init__(self, config: RunConfig, rate: Rate, beside: bool = False) -> None:
        self._config, self._rate = config, rate
        self._known: dict[Question, ParallelConfig | str] = {}
        self._room: dict[ParallelConfig, bool] = {}
        self._takes_s = inf  # of the processor, as the slowest answer did
        self._asked = set[Question]()  # and not answered yet
        self._link: Connection | None = None
        if beside:
            context = get_context("fork")
            self._link, theirs = context.Pipe()
            context.Process(target=_work_ahead, args=(config, rate, theirs, self._link), daemon=True).start()
            theirs.close()

    def close(self) -> None:
        """End the process."""
        if self._link is not None:
            self._link.close()
            self._link = None

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
            self._link = None  # it has died: from now on answers come when they are asked for

    def read(self) -> None:
        """Take what has been answered; often, for the process waits for it to be taken."""
        try:
            while self._link is not None and self._link.poll():
                asked, found, seconds = self._link.recv()
                if isinstance(asked, ParallelConfig):
                    self._room = {asked: found}  # of the last that was considered
                    continue
                self._takes_s = seconds if self._takes_s == inf else max(self._takes_s, seconds)
                _keep(self._known, asked, found)
                self._asked.discard(asked)
        except (EOFError, OSError):
            self._link = None


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
    inbox = SimpleQueue[Situation | Question]()
    Thread(target=_receive, args=(link, inbox), daemon=True).start()
    waiting: deque[_Next] = deque()
    known: dict[Question, ParallelConfig | str] = {}
    try:
        while True:
            while not waiting or not inbox.empty():
                about = inbox.get()
                if isinstance(about, Question):
                    known.pop(about, None)  # its answer was forgotten
                    waiting.appendleft(_Next(about))
                else:
                    link.send((about.parallel, _has_room(config, about.parallel), 0.0))
                    waiting.extendleft(reversed(_losses(config, about)))
            first = waiting.popleft()
            if first.asked not in known:
                began = time.process_time()
                _keep(known, first.asked, _outcome(config, first.asked, rate))
                link.send((first.asked, known[first.asked], time.process_time() - began))
            if first.then is not None and isinstance(found := known[first.asked], ParallelConfig):
                waiting.extend(_losses(config, _changed(config, first.then, found, rate), first=False))
    except OSError:
        os._exit(0)


def _receive(link: Connection, inbox: SimpleQueue[Situation | Question]) -> None:
    """Take what is asked at once: while the answer of a large cluster is worked out, the manager must not wait."""
    try:
        while True:
            inbox.put(link.recv())
    except (EOFError, OSError):
        os._exit(0)


def _keep(known: dict[Question, ParallelConfig | str], asked: Question, found: ParallelConfig | str) -> None:
    while len(known) >= _KEPT:
        known.pop(next(iter(known)))  # the oldest
    known[asked] = found


@dataclass(frozen=True)
class _Next:
    """A question, and what stands when it has to be answered, if then more is to be asked."""

    asked: Question
    then: Situation | None = None


def _losses(config: RunConfig, stands: Situation, first: bool = True) -> Sequence[_Next]:
    """What is asked if some are lost, and after the `first` rank of a small layout another."""
    asked: dict[Question, _Next] = {}
    for lost in stands.losses(pairs=first and stands.small):
        if living := stands.staying(lost, config.elastic.spares):
            one = question(config.cluster, stands.layout, stands.parallel, living)
            goes_on = first and stands.small and len(lost) == 1
            asked.setdefault(one, _Next(one, stands.without(lost) if goes_on else None))
    return tuple(asked.values())


def _changed(config: RunConfig, left: Situation, found: ParallelConfig, rate: Rate) -> Situation:
    """When the answer stands."""
    living = left.staying((), config.elastic.spares)
    parallel, layout = choose(config, left.layout, left.parallel, living, rate, lambda _: found)
    return replace(left, layout=layout, parallel=parallel)


def _outcome(config: RunConfig, asked: Question, rate: Rate) -> ParallelConfig | str:
    try:
        return answer(config, asked, rate)
    except ValueError as error:
        return str(error)


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
