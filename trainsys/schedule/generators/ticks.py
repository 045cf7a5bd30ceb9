"""Forwards and backwards in turns, decided by a run of the pipeline in which F and B take one tick each.

All lanes share one order of the forwards and one of the backwards, in which nothing comes before what it needs; a lane
keeps its own part of both. It alternates while it can, and starts a forward only while it keeps fewer activations than
its limit. Under such limits lanes may come to wait in a cycle; then the limit rises by one where the first unfinished
forward of all is, which needs nothing that is not there. So the run always ends.

Inside the run an action is one number: F of `stage` for microbatch mb of m is ``stage · m + mb``, and B that number of
all stages later, so that a deep pipeline of many microbatches is decided in milliseconds.
"""

from __future__ import annotations

from array import array
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
    count, stages = routes.num_microbatches, routes.num_stages
    lane_of = [placement[stage, replica] for stage, row in enumerate(routes.table) for replica in row]
    lanes: list[list[Action]] = [[] for _ in limits]
    for number in turns(stages, count, lane_of, forwards, backwards, limits):
        work = number % (stages * count)
        kind = Kind.F if work == number else Kind.B
        lanes[lane_of[work]].append(Action(work // count, kind, work % count))
    return tuple(map(tuple, lanes))


def turns(
    stages: int,
    count: int,
    lane_of: Sequence[int],
    forwards: Sequence[Work],
    backwards: Sequence[Work],
    limits: Sequence[int],
) -> array[int]:
    """The actions of all lanes as numbers, tick by tick: an order in which nothing comes before what it needs.

    Args:
        count: microbatches.
        lane_of: of F ``stage · count + mb``.
    """
    lanes = [_Lane(limit, stages, count) for limit in limits]
    for stage, mb in forwards:
        lanes[lane_of[stage * count + mb]].forwards.append(stage * count + mb)
    for stage, mb in backwards:
        lanes[lane_of[stage * count + mb]].backwards.append(stage * count + mb)
    done = bytearray(2 * stages * count)
    order: array[int] = array("i")
    left = [lane for lane in lanes if lane.forwards]
    while left:
        ran = [number for lane in left if (number := lane.step(done)) >= 0]
        for number in ran:
            done[number] = 1
        order.extend(ran)
        if not ran:
            stuck = next(work for work in forwards if not done[work[0] * count + work[1]])
            lanes[lane_of[stuck[0] * count + stuck[1]]].limit += 1
        left = [lane for lane in left if lane.ended < len(lane.backwards)]
    return order


class _Lane:
    """What one lane has to do, and what it has done."""

    def __init__(self, limit: int, stages: int, count: int) -> None:
        self.limit, self.count, self.all = limit, count, stages * count
        self.forwards: list[int] = []
        self.backwards: list[int] = []
        self.started = self.ended = 0
        self.was_backward = False

    def step(self, done: bytearray) -> int:
        """One tick: a backward after a forward and a forward after a backward, else the other one, else -1."""
        if self.was_backward:
            number = self._forward(done)
            return number if number >= 0 else self._backward(done)
        number = self._backward(done)
        return number if number >= 0 else self._forward(done)

    def _forward(self, done: bytearray) -> int:
        if self.started == len(self.forwards) or self.started - self.ended >= self.limit:
            return -1
        work = self.forwards[self.started]
        if work >= self.count and not done[work - self.count]:
            return -1
        self.started += 1
        self.was_backward = False
        return work

    def _backward(self, done: bytearray) -> int:
        if self.ended == self.started:
            return -1
        work = self.backwards[self.ended]
        later = work + self.count
        if not done[work] or (later < self.all and not done[self.all + later]):
            return -1
        self.ended += 1
        self.was_backward = True
        return self.all + work
