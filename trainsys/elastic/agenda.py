"""What is to be worked out before it is needed, in what order: the questions that a loss would ask of the planner."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.situation import Situation
from trainsys.planner.choose import Question, answer, choose, question
from trainsys.planner.device import Rate

_KEPT = 4096  # answers


class Answers(dict[Question, ParallelConfig | str]):
    """The newest of them: layouts, or why there is none."""

    def keep(self, asked: Question, found: ParallelConfig | str) -> None:
        while len(self) >= _KEPT:
            self.pop(next(iter(self)))  # the oldest
        self[asked] = found


@dataclass(frozen=True)
class _Item:
    """A question.

    Attributes:
        of: number of the situation that it belongs to; -1: somebody waits for the answer.
        likely: one loss is enough for it.
        then: what stands when it has to be answered, if more is to be asked then.
    """

    asked: Question
    of: int = -1
    likely: bool = False
    then: Situation | None = None


class Agenda:
    """The questions, those first whose answers are waited for, then those of the newest situation.

    Only the last two situations count: while the next layout is made ready, either may stand. Until it is, the one
    before does, so what a single loss asks of that comes before all that is asked of the new one.
    """

    def __init__(self, config: RunConfig, rate: Rate) -> None:
        self._config, self._rate = config, rate
        self._waiting: deque[_Item] = deque()
        self._known = Answers()
        self._stands: Situation | None = None
        self._of = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def ask(self, asked: Question) -> None:
        """Who asks does not have the answer, or has forgotten it."""
        self._known.pop(asked, None)
        self._waiting.appendleft(_Item(asked))

    def consider(self, stands: Situation) -> None:
        """See what may follow."""
        if stands == self._stands:
            return
        self._stands, self._of = stands, self._of + 1
        urgent = [item for item in self._waiting if item.of < 0]
        before = [item for item in self._waiting if item.of == self._of - 1]
        soon, later = ([item for item in before if item.likely == likely] for likely in (True, False))
        self._waiting = deque([*urgent, *soon, *self._losses(stands), *later])

    def next(self) -> tuple[Question, ParallelConfig | str, float] | None:
        """Answer the next question. Returns it, the answer and the seconds of the processor that it took; None where
        it had been answered."""
        item, began, news = self._waiting.popleft(), time.process_time(), None
        if item.asked not in self._known:
            self._known.keep(item.asked, self._outcome(item.asked))
            news = item.asked, self._known[item.asked], time.process_time() - began
        found = self._known[item.asked]
        if item.then is not None and isinstance(found, ParallelConfig):
            self._waiting.extend(self._losses_after(item, item.then, found))
        return news

    def _losses(self, stands: Situation) -> Sequence[_Item]:
        """What is asked if some are lost, and after the first rank of a small layout another."""
        asked: dict[Question, _Item] = {}
        single = stands.losses(pairs=False)
        for lost in stands.losses(pairs=stands.small):
            if living := stands.staying(lost, self._config.elastic.spares):
                one = question(self._config.cluster, stands.layout, stands.parallel, living)
                then = stands.without(lost) if stands.small and len(lost) == 1 else None
                asked.setdefault(one, _Item(one, self._of, lost in single, then))
        return tuple(asked.values())

    def _losses_after(self, first: _Item, left: Situation, found: ParallelConfig) -> Sequence[_Item]:
        """The same when the answer to `first` stands; nothing where it cannot, which is said when it comes to that."""
        spares, cluster = self._config.elastic.spares, self._config.cluster
        living = left.staying((), spares)
        try:
            parallel, layout = choose(self._config, left.layout, left.parallel, living, self._rate, lambda _: found)
        except ValueError:
            return ()
        stands = replace(left, layout=layout, parallel=parallel)
        staying = [stands.staying(lost, spares) for lost in stands.losses(pairs=False)]
        asked = (question(cluster, layout, parallel, nodes) for nodes in staying if nodes)
        return [_Item(one, first.of) for one in dict.fromkeys(asked)]

    def _outcome(self, asked: Question) -> ParallelConfig | str:
        try:
            return answer(self._config, asked, self._rate)
        except ValueError as error:
            return str(error)
