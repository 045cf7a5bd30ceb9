"""Successors worked out before they are needed, in a process beside the manager, so that deciding takes milliseconds.

After every change of layout, and when ranks have joined, it is asked what to do if any one rank, or any one node, is
lost, and of a small layout then any two: one may die while another is recovered from. Of a regular layout that is one
question per stage, or pair of stages. The newest questions come first. The process has a low priority, but not the
lowest: ranks that compute on all cores would leave it a hundredth of one, and the next fault may be near.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf
from multiprocessing import get_context
from multiprocessing.connection import Connection

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.bonds import die_with_parent, leave_stopping_to_others, name_process
from trainsys.planner.choose import Question, answer, question
from trainsys.planner.device import Rate
from trainsys.planner.predict import worst_stage
from trainsys.planner.stages import Stages
from trainsys.space.layout import Layout

_NICE = 5
_AT_ONCE_S = 0.02  # an answer that takes no longer is not worth waiting for such a process
_KEPT = 4096  # answers
_SMALL = 16  # ranks: of more, pairs are too many


@dataclass(frozen=True)
class Situation:
    """What stands.

    Attributes:
        nodes: member -> node, of all members.
        leaving: members whose place will be taken away.
        world_size: ranks that work when all is well; with ``elastic.spares`` others stand by.
    """

    layout: Layout
    parallel: ParallelConfig
    nodes: Mapping[int, int]
    leaving: frozenset[int]
    world_size: int

    def staying(self, lost: Collection[int], spares: int) -> dict[int, int]:
        """Those who do not leave and are not lost. With spares, who works goes on working; of the others as many as are
        missing."""
        nodes = {rank: node for rank, node in self.nodes.items() if rank not in self.leaving and rank not in lost}
        if not spares:
            return nodes
        wanted, works = max(self.world_size, len(nodes) - spares), set(self.layout.ranks)
        order = sorted(nodes, key=lambda rank: (rank not in works, rank))
        return {rank: nodes[rank] for rank in sorted(order[:wanted])}


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
        self._read()
        return self._room.get(parallel, False) if self._link is not None else _has_room(self._config, parallel)

    def knows(self, asked: Question) -> bool:
        """Whether `answer` will come at once; if not, it is being worked out."""
        self._read()
        if self._link is None or self._takes_s < _AT_ONCE_S:
            return True
        if asked not in self._known and asked not in self._asked:  # once: nobody reads while an answer is worked out
            self._asked.add(asked)
            self._ask(asked)
        return asked in self._known

    def answer(self, asked: Question) -> ParallelConfig:
        """As `planner.choose.answer`, at once if it was foreseen. Raises ValueError."""
        self._read()
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

    def _read(self) -> None:
        try:
            while self._link is not None and self._link.poll():
                asked, found, seconds = self._link.recv()
                if isinstance(asked, ParallelConfig):
                    self._room = {asked: found}  # of what stands
                    continue
                self._takes_s = seconds if self._takes_s == inf else max(self._takes_s, seconds)
                while len(self._known) >= _KEPT:
                    self._known.pop(next(iter(self._known)))
                self._known[asked] = found
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
    waiting: deque[Question] = deque()
    done = set[Question]()
    try:
        while True:
            while not waiting or link.poll():
                about = link.recv()
                if isinstance(about, Question):
                    done.discard(about)  # its answer was forgotten
                    waiting.appendleft(about)
                else:
                    link.send((about.parallel, _has_room(config, about.parallel), 0.0))
                    waiting.extendleft(reversed(_losses(config, about)))
            first = waiting.popleft()
            if first not in done:
                done.add(first)
                began = time.process_time()
                link.send((first, _outcome(config, first, rate), time.process_time() - began))
    except (EOFError, OSError):
        os._exit(0)


def _losses(config: RunConfig, stands: Situation) -> Sequence[Question]:
    """What is asked if any one rank, any one node, or in a small layout any two ranks are lost."""
    nodes, ranks = stands.nodes, stands.layout.ranks
    lost = [{rank} for rank in ranks]
    lost += [{r for r, n in nodes.items() if n == node} for node in sorted(set(nodes.values()))]
    if len(ranks) <= _SMALL:
        lost += [set(pair) for pair in combinations(ranks, 2)]
    left = [stands.staying(those, config.elastic.spares) for those in lost]
    asked = (question(config.cluster, stands.layout, stands.parallel, living) for living in left if living)
    return tuple(dict.fromkeys(asked))


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
