"""What the manager asks: who hangs, and who is slow. Between its connections and the analyst, which knows neither."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from math import isfinite
from typing import Any

from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.analyst.analyst import Analyst
from trainsys.elastic.analyst.hang import Told
from trainsys.elastic.analyst.remedy import balanced, plain, remedy
from trainsys.elastic.analyst.slow import Place
from trainsys.elastic.analyst.verdict import SLOW_RANK, Finding
from trainsys.elastic.links import Link
from trainsys.elastic.manager_history import ManagerHistory
from trainsys.elastic.member import Member
from trainsys.elastic.messages import Proposal
from trainsys.elastic.outbox import Outbox
from trainsys.elastic.selection import Chosen, Selection
from trainsys.parallel.engine import stages_of
from trainsys.planner.step_schedule import relative_costs
from trainsys.space.build import succeed
from trainsys.space.layout import Layout

_HOLD_STEPS = 20  # between two remedies


class Lookout:
    """Of one run.

    Args:
        memory: of the lookout before, whose manager was lost.

    Attributes:
        memory: what the next one must know; renewed when there is something new.
    """

    def __init__(
        self, config: RunConfig, selection: Selection, history: ManagerHistory, outbox: Outbox, memory: Any = None
    ) -> None:
        self._history, self._outbox, self._selection = history, outbox, selection
        selection.relieve = self.relieved
        self._config, elastic = config, config.elastic
        self.analyst = Analyst(elastic.straggler_factor, elastic.straggler_steps)
        self._last = time.monotonic()
        self._due, self._acted = False, -_HOLD_STEPS  # a remedy is to be looked for; step of the last one
        self._balancing = False  # a remedy is under way
        self._layers: dict[ParallelConfig, tuple[int, ...]] = {}  # what was done about layers -> as they were before
        self._broken: dict[tuple[int, ...], int] = {}  # link -> times that messages got lost on it
        self.memory = memory
        if memory is not None:
            self._due, self._acted, self._layers, self._broken, ranks, self.analyst.slow = deepcopy(memory)
            self.analyst.ranks.past = ranks

    def _remember(self) -> None:
        known = self._due, self._acted, self._layers, self._broken, self.analyst.ranks.past, self.analyst.slow
        self.memory = deepcopy(known)

    def entered(self, layout: Layout, parallel: ParallelConfig, members: Mapping[int, Member]) -> None:
        """A layout counts."""
        model, batch = self._config.model, self._config.batch
        stages = stages_of(self._config, layout)
        costs = relative_costs(model, stages, batch.seq_len, parallel.recompute == "full")
        per_stage = [stages.total(costs.f_s, s) + stages.total(costs.b_s, s) for s in range(stages.count)]
        self.analyst.enter(
            {rank: Place(stage := layout.where(rank)[0], members[rank].node, per_stage[stage]) for rank in layout.ranks}
        )
        self.analyst.keep(members)
        self._last, self._balancing = time.monotonic(), False
        if self._layers:
            self._remember()

    def committed(
        self, step: int, epoch: int, proposals: Mapping[int, Proposal], members: Mapping[int, Member]
    ) -> None:
        """A step counts: who is slow, or no longer?"""
        now = time.monotonic()
        step_s, self._last = now - self._last, now
        times = {rank: p.times for rank, p in proposals.items() if p.times is not None}
        offset_s = {rank: link.offset_s for rank, link in _links(members).items() if isfinite(link.offset_s)}
        for finding in self.analyst.step(step, times, step_s, offset_s):
            self._due = self._due or finding.kind == SLOW_RANK
            self._tell(finding, epoch, step)

    def hung(self, members: Mapping[int, Member], epoch: int, step: int) -> tuple[int | None, str]:
        """Whom of the layout's ranks to go on without, since it has hung for ``elastic.hang_limit_s``, or else why to
        connect anew; (None, ""): nobody hangs."""
        limit_s = self._config.elastic.hang_limit_s
        if not limit_s:
            return None, ""
        now = time.monotonic()
        told = {
            rank: Told(link.beat.doing, now - link.told)
            for rank, link in _links(members).items()
            if rank in self.analyst.places
            if link.beat is not None and link.beat.doing is not None and link.beat.epoch == epoch
        }
        hang = self.analyst.hang(told, limit_s, self._config.elastic.heartbeat_limit_s / 2, step)
        if hang is None:
            return None, ""
        guilty = self._guilty(hang)
        self._tell(hang, epoch, step)
        return guilty, str(hang)

    def _tell(self, finding: Finding, epoch: int, step: int) -> None:
        self._history.found(finding, epoch, step)
        self._outbox.found(finding, step)
        self._remember()

    def _guilty(self, hang: Finding) -> int | None:
        """Whom to go on without: the one that hangs, or an end of a link that lost messages before; else None."""
        if len(hang.place) == 1:
            return hang.place[0]
        self._broken[hang.place] = self._broken.get(hang.place, 0) + 1
        return hang.place[1] if self._broken[hang.place] > 1 else None

    def remedy(
        self, step: int, layout: Layout, parallel: ParallelConfig, members: Mapping[int, Member]
    ) -> str:  # fmt: skip
        """What to do at this step boundary about those who are slow, or no longer.

        Args:
            layout, parallel: what counts.

        Returns:
            It, in words; empty: nothing. Whoever is to be drained is among those who leave.
        """
        mode, slow = self._config.elastic.stragglers, self.analyst.slow
        if mode == "tell" or not self._due or step - self._acted < _HOLD_STEPS:
            return ""
        self._due = False
        self._remember()
        ranks = {rank for rank in slow if rank in layout}
        try:
            others = {r: m.node for r, m in members.items() if r not in ranks | self._selection.leaving}
            rest = self._selection.best(layout, parallel, others)[0] if ranks and others else None
        except ValueError:
            rest = None
        best = remedy(self._config, parallel, self._before(parallel), self._lanes(layout), rest, mode)
        if best.kind == "none":
            return ""
        self._acted = step
        self._due = self._balancing = best.kind == "balance"  # and look again
        self._selection.leaving |= ranks if best.kind == "drain" else set()
        self._remember()
        return str(best)

    def relieved(
        self, now: Layout, parallel: ParallelConfig, staying: Mapping[int, int], best: Callable[[], Chosen]
    ) -> Chosen:
        """The layout to change to: the present one if only shares or layers move, with less for those who are slow.

        Args:
            now, parallel: what counts.
            best: the planner's answer for those who stay. Raises ValueError where there is none.
        """
        if self._balancing and staying.keys() >= set(now.ranks):
            base, present, layout = self._before(parallel), parallel, now
        else:
            base, layout = best()
            present = base
        better = base
        if self._config.elastic.stragglers == "balance" and self.analyst.slow.keys() & set(layout.ranks):
            better = balanced(self._config, base, self._lanes(layout))
        if better.stage_layers != present.stage_layers:
            parts, node_of = self._config.model.vocab_parts, staying.__getitem__
            tolerate = self._config.elastic.tolerate
            layout = succeed(layout, better, better.stage_layers, sorted(staying), node_of, parts, tolerate)
            self._layers[better] = base.stage_layers
        return better, layout

    def _before(self, parallel: ParallelConfig) -> ParallelConfig:
        """`parallel` without what was done about slow ranks."""
        return replace(plain(parallel), stage_layers=self._layers.get(parallel, parallel.stage_layers))

    def _lanes(self, layout: Layout) -> dict[tuple[int, int], float]:
        """Where the slow ones are: (stage, replica) -> factor."""
        lanes: dict[tuple[int, int], float] = {}
        for rank, factor in self.analyst.slow.items():
            if rank in layout:
                lane = layout.where(rank)[0], layout.replica_of(rank)[0]
                lanes[lane] = max(factor, lanes.get(lane, 1.0))
        return lanes


def _links(members: Mapping[int, Member]) -> dict[int, Link]:
    """Of those that are connected."""
    return {rank: member.link for rank, member in members.items() if isinstance(member.link, Link)}
