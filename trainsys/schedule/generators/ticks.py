"""Forwards and backwards in turns, decided by a run of the pipeline in which F and B take one tick each.

All lanes share one order of the forwards and one of the backwards, in which nothing comes before what it needs; a lane
keeps its own part of both. It alternates while it can, and starts a forward only while it keeps fewer activations than
its limit. Under such limits lanes may come to wait in a cycle; then the limit rises by one where the first unfinished
forward of all is, which needs nothing that is not there. So the run always ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Placement

Work = tuple[int, int]  # (stage, microbatch)


def in_turns(
    routes: Routes, placement: Placement, forwards: Sequence[Work], backwards: Sequence[Work], limits: Sequence[int]
) -> tuple[tuple[Action, ...], ...]:
    """Every lane's compute actions.

    Args:
        forwards: all (stage, microbatch) in the shared order of the forwards.
        backwards: the same in that of the backwards.
        limits: per lane, of how many (stage, microbatch) it may keep the activations, unless nobody could go on; ≥ 1.
    """

    def lane_of(work: Work) -> _Lane:
        return lanes[placement[work[0], routes.table[work[0]][work[1]]]]

    lanes = [_Lane(limit) for limit in limits]
    last = routes.num_stages - 1
    for stage, mb in forwards:
        needs = Action(stage - 1, Kind.F, mb) if stage else None
        lane_of((stage, mb)).forwards.append((Action(stage, Kind.F, mb), needs))
    for stage, mb in backwards:
        needs = Action(stage + 1, Kind.B, mb) if stage < last else None
        lane_of((stage, mb)).backwards.append((Action(stage, Kind.B, mb), needs))
    done: set[Action | None] = {None}
    left = [lane for lane in lanes if lane.forwards]
    while left:
        ran = [action for lane in left if (action := lane.step(done)) is not None]
        done.update(ran)
        if not ran:
            lane_of(next(work for work in forwards if Action(work[0], Kind.F, work[1]) not in done)).limit += 1
        left = [lane for lane in left if lane.ended < len(lane.backwards)]
    return tuple(tuple(lane.actions) for lane in lanes)


class _Lane:
    """What one lane has to do, each action beside what it needs of another lane, and what it has done."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.forwards: list[tuple[Action, Action | None]] = []
        self.backwards: list[tuple[Action, Action | None]] = []
        self.actions: list[Action] = []
        self.started = self.ended = 0

    def step(self, done: set[Action | None]) -> Action | None:
        """One tick: a backward after a forward and a forward after a backward, else the other one, else nothing."""
        forward = bool(self.actions) and self.actions[-1].kind is Kind.B
        action = self._next(forward, done) or self._next(not forward, done)
        if action is not None:
            self.actions.append(action)
        return action

    def _next(self, forward: bool, done: set[Action | None]) -> Action | None:
        if forward:
            if self.started == len(self.forwards) or self.started - self.ended >= self.limit:
                return None
            action, needs = self.forwards[self.started]
            self.started += needs in done
            return action if needs in done else None
        if self.ended == self.started:
            return None
        action, needs = self.backwards[self.ended]
        ready = needs in done and Action(action.stage, Kind.F, action.microbatch) in done
        self.ended += ready
        return action if ready else None
