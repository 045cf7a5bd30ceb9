"""Whom the next layout is for, and which it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.foresight import Foresight
from trainsys.elastic.situation import Situation
from trainsys.planner.choose import choose, question
from trainsys.planner.device import Rate
from trainsys.space.layout import Layout

Chosen = tuple[ParallelConfig, Layout]


class Selection:
    """The manager's choice among its members.

    Args:
        world_size: ranks that work when all is well; with ``elastic.spares`` others stand by.
        foresight: the planner's answers.

    Attributes:
        fresh: ranks that joined since the layout was last chosen.
        leaving: ranks whose place will be taken away.
        needed: of these, those without whom no layout is left.
        relieve: makes of layout, configuration, members and the planner's answer what is to be, less for slow ranks.
    """

    def __init__(self, config: RunConfig, world_size: int, rate: Rate, foresight: Foresight | None = None) -> None:
        self._config, self._world_size, self._rate = config, world_size, rate
        self.foresight = foresight or Foresight(config, rate)
        self.relieve: Callable[[Layout, ParallelConfig, Mapping[int, int], Callable[[], Chosen]], Chosen]
        self.relieve = lambda layout, parallel, nodes, best: best()
        self.fresh: set[int] = set()
        self.leaving: set[int] = set()
        self.needed: set[int] = set()
        self._foreseen: set[int] = set()  # members when it was last asked what may follow

    def forget(self, rank: int) -> None:
        """It is no member any more."""
        for ranks in (self.fresh, self.leaving, self.needed):
            ranks.discard(rank)

    def choose(self, layout: Layout | None, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Chosen:
        """The layout of those who stay; where they are too few, of all, until a fresh rank comes.

        Args:
            layout: the committed one; None at the start, when everybody is needed.
            parallel: its configuration.
            nodes: member -> node.

        Raises:
            ValueError: there is none for so few, or none that fits.
        """
        if layout is None:
            return choose(self._config, None, parallel, nodes, self._rate)
        try:
            found = self._choose(layout, parallel, self._staying(layout, parallel, nodes))
            self.needed = set()
        except ValueError:
            if not self.leaving.intersection(nodes):
                raise
            found = self._choose(layout, parallel, nodes)
            self.needed = set(self.leaving)
        return found

    def grows(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> bool:
        """Whether ranks have joined that the best layout, if it is known by now, has a use for; others stand by until
        the next change."""
        if not self.fresh:
            return False
        if not self.fresh <= self._foreseen:
            self.foresee(layout, parallel, nodes)
        asked = question(self._config.cluster, layout, parallel, self._staying(layout, parallel, nodes))
        if self.foresight.knows(asked):
            try:
                best = self.choose(layout, parallel, nodes)
            except ValueError:
                return True  # what is wrong is said where the layout is chosen
            if best != (parallel, layout):
                return True
            self.fresh = set()
        return False

    def _choose(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Chosen:
        return self.relieve(layout, parallel, nodes, lambda: self.best(layout, parallel, nodes))

    def best(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Chosen:
        """The planner's answer. Raises ValueError."""
        return choose(self._config, layout, parallel, nodes, self._rate, self.foresight.answer)

    def foresee(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> None:
        """A layout stands, or there are other members: see what may follow."""
        self._foreseen = set(nodes)
        self.foresight.consider(self._situation(layout, parallel, nodes))

    def _situation(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Situation:
        return Situation(layout, parallel, dict(nodes), frozenset(self.leaving), self._world_size)

    def _staying(self, layout: Layout, parallel: ParallelConfig, nodes: Mapping[int, int]) -> Mapping[int, int]:
        return self._situation(layout, parallel, nodes).staying((), self._config.elastic.spares)
