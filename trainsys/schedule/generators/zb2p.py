"""ZB-2P, the automatic schedule of Qi et al. 2023 (arXiv:2401.10241, section 3): from measured costs, with as many
activations as the cap allows.

With 2P microbatches per lane, where 1F1B keeps P on its first, the bubble is no more than the start's. Lanes first take
as many forwards as fit before the first I is back; then, microbatch by microbatch, each lane takes one F unless that
would delay the next lane's I, and one I, and puts W where it would wait. Three choices are open, and all eight
combinations are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import floor

from trainsys.schedule.generators import zb1p
from trainsys.schedule.generators.clock import Clock, Stuck, least_s, step_s
from trainsys.schedule.generators.columns import Column, Rows, alone_by_events, schedule_columns
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only ZB-2P; its cap is the one given, or 2P microbatches.

    Raises:
        ValueError: for vp > 1.
    """
    if problem.vp > 1:
        raise ValueError(
            f"parallel.schedule=zb2p has one run of layers per stage, not parallel.vp={problem.vp}; set parallel.vp=1, "
            "or parallel.schedule=zb1p"
        )
    most = floor(problem.cap) or 2 * problem.depth
    return schedule_columns("zb2p", problem, lambda column: rule(column, most), keeps=most)


def rule(column: Column, most: int) -> Rows:
    """The shortest of the eight orders; ZB-1P's where that fits and is as short, where not perhaps that of events.

    Of a long step a shorter one says which of the eight it is.
    """
    every = [_Choices(*bits) for bits in product((True, False), repeat=3)]
    shorter = most + column.depth
    if column.microbatches > 2 * shorter:
        run = _best(replace(column, microbatches=shorter), most, every)
        every = [run.choices] if run else every
    best = _best(column, most, every)
    fits = most >= min(column.depth, column.microbatches)
    other = zb1p.rule(column) if fits else alone_by_events(column, most)
    return other if best is None or step_s(column, other) <= best.step_s + 1e-12 else best.rows


def _best(column: Column, most: int, every: list[_Choices]) -> _Automatic | None:
    """The shortest with one of these choices."""
    best: _Automatic | None = None
    least = least_s(column) + 1e-9
    for choices in every:
        run = _Automatic(column, most, choices)
        try:
            run.decide()
        except Stuck:
            continue
        if best is None or run.step_s < best.step_s - 1e-12:
            best = run
        if best.step_s <= least:
            break
    return best


@dataclass(frozen=True)
class _Choices:
    """What is open.

    Attributes:
        beyond: forwards before the first I may end after the gradient for it is there.
        i_first: a forward is left out if it would delay the next lane's I.
        always_w: W goes before an input that a lane would wait for only as long as the worst one has.
    """

    beyond: bool
    i_first: bool
    always_w: bool


class _Automatic(Clock):
    """One run of the rule. A lane is a run of layers: both are called stage here."""

    def __init__(self, column: Column, most: int, choices: _Choices) -> None:
        super().__init__(column, most)
        self.choices, self.stages, self.m = choices, range(column.depth), column.microbatches

    def decide(self) -> None:
        self.first()
        for _ in range(1, self.m):
            forward = self.wanted()
            for stage in self.stages:
                if forward[stage]:
                    self.forward(stage)
            for stage in reversed(self.stages):
                self.backward(stage)
        self.finish()

    def first(self) -> None:
        """The first microbatch there and back, and before its I as many forwards as fit, less on each later stage."""
        for stage in self.stages:
            self.f(stage)
        more = self.in_advance()
        for stage in self.stages[1:]:
            if more[stage] and 1 + more[stage] < self.m:
                more[stage] = min(more[stage], max(0, more[stage - 1] - 1))
        for stage in self.stages:
            for _ in range(more[stage]):
                self.f(stage)
        for stage in reversed(self.stages):
            self.i(stage)

    def in_advance(self) -> list[int]:
        """Per stage the forwards for which there are room and time before the first gradient comes."""
        column, more = self.column, [0 for _ in self.stages]
        last = self.stages[-1]
        turn = self.f_end[last][0] + column.i_s[last]
        for stage in reversed(self.stages[:-1]):
            arrival, end, f_s = turn + self.i_hop[stage], self.now[stage], column.f_s[stage]
            while 1 + more[stage] < min(self.m, self.most) and self.in_time(end, f_s, arrival):
                more[stage] += 1
                end += f_s
            turn = max(end, arrival) + column.i_s[stage]
        return more

    def in_time(self, now: float, f_s: float, arrival: float) -> bool:
        """Whether a forward at `now` suits a gradient that arrives then."""
        return now < arrival if self.choices.beyond else now + f_s <= arrival

    def wanted(self) -> list[bool]:
        """Per stage whether it should take a forward now; none does that a later one has not taken room for."""
        wanted = [self.wants(stage) for stage in self.stages]
        for stage in reversed(self.stages[:-1]):
            wanted[stage] = wanted[stage] and wanted[stage + 1]
        return wanted

    def wants(self, stage: int) -> bool:
        done = len(self.f_end[stage])
        if done >= self.m:
            return False
        if not self.choices.i_first or stage == self.stages[-1] or done < len(self.f_end[stage + 1]) + 2:
            return True
        column, now = self.column, self.now[stage]
        needed = self.now[stage + 1] + column.f_s[stage + 1] + column.i_s[stage + 1] + self.i_hop[stage]
        if now >= needed:
            return False
        over = self.alive[stage] + 1 - self.most
        busy = column.f_s[stage] + column.w_s[stage] * max(0, min(over, len(self.waiting[stage])))
        return now + busy <= needed or needed - now > self.worst - self.idle[stage]

    def forward(self, stage: int) -> None:
        self.make_room(stage)
        if stage > 0:
            self.wait(stage, self.f_arrival(stage))
        self.f(stage)

    def backward(self, stage: int) -> None:
        if stage < self.stages[-1]:
            self.wait(stage, self.i_arrival(stage))
        if stage == 0 and len(self.f_end[0]) == self.m:
            while self.waiting[0]:
                self.w(0)
        self.i(stage)

    def wait(self, stage: int, arrival: float) -> None:
        self.fill(stage, arrival, self.worst - self.idle[stage], True, self.choices.always_w)
