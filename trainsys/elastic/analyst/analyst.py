"""The analyst: takes what ranks measured, step by step, and what they say that they are in; yields findings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from trainsys.comm.stamps import StepTimes
from trainsys.elastic.analyst.delays import delay_matrix
from trainsys.elastic.analyst.hang import Told, find_hang
from trainsys.elastic.analyst.slow import Place, SlowLinks, SlowRanks
from trainsys.elastic.analyst.verdict import Finding


class Analyst:
    """Of one run.

    Args:
        factor: times as long as usual that makes a straggler.
        steps: in a row.

    Attributes:
        slow: rank -> factor, of those that are slow now.
    """

    def __init__(self, factor: float, steps: int) -> None:
        self._factor, self._steps = factor, steps
        self.ranks, self._links = SlowRanks(factor, steps), SlowLinks(factor, steps)
        self.places: dict[int, Place] = {}
        self.slow: dict[int, float] = {}
        self._fresh = True  # the next step is the first of a layout: who comes late to it says nothing

    def enter(self, places: Mapping[int, Place]) -> None:
        """A layout counts from here on. Links begin anew, ranks are remembered."""
        self.places, self._fresh = dict(places), True
        self._links = SlowLinks(self._factor, self._steps)

    def keep(self, members: Collection[int]) -> None:
        """Forget who is gone."""
        for rank in self.ranks.past.keys() - set(members):
            self.slow.pop(rank, None)
            self.ranks.past.pop(rank)

    def step(
        self, step: int, times: Mapping[int, StepTimes], step_s: float, offset_s: Mapping[int, float]
    ) -> list[Finding]:
        """What a committed step tells.

        Args:
            times: of every rank of the layout.
            offset_s: to add to each rank's clock.
        """
        if self._fresh:
            self._fresh = False
            return []
        found = self.ranks.step(step, times, self.places)
        node_of = {rank: place.node for rank, place in self.places.items()}
        found += self._links.step(step, delay_matrix(times, offset_s), step_s, node_of)
        for rank, past in self.ranks.past.items():
            if past.open:
                self.slow.setdefault(rank, past.ratio)
            else:
                self.slow.pop(rank, None)
        return found

    def hang(self, told: Mapping[int, Told], limit_s: float, fresh_s: float, step: int) -> Finding | None:
        """Who hangs, if anybody has been silent about getting on for `limit_s`."""
        if not any(t.doing.for_s >= limit_s for t in told.values()):
            return None
        return find_hang(told, limit_s, fresh_s, step)
