"""The vocabulary on all lanes (Yeung et al. 2024, arXiv:2411.05288): a pass that places E, S, T and G in a schedule.

The head's products become passes that every lane runs for every microbatch, on its rows of the matrix. So the last
stage's backward waits for others, once (S, with the gradient of the input in it) or twice (S, then T); the warm-up
grows by so many microbatches, and with it the most activations that a lane keeps. Which lane does what in between is
decided by events: S comes first, as others wait for it, then T where they wait for that; else the given order goes on,
and T and G fill its gaps or follow one microbatch later.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Callable

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.gates import WAITING, Gates
from trainsys.schedule.numbered import CODE, find_ways
from trainsys.schedule.problem import BARRIERS, Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule

_AHEAD = 2  # microbatches whose lookup is made before the first stage comes to them
_BACKLOG = 1  # T and G of a lane that may wait for a gap


def on_all_lanes(generate: Callable[[Problem], Schedule], problem: Problem) -> Schedule:
    """The compute-only schedule of `generate` with the vocabulary on all lanes.

    Where each lane has one stage the pipeline is planned one stage longer per barrier, which nobody runs, so that its
    warm-up grows. Schedules in a V leave room themselves where it turns (generators/vhalf.py); others wait there.
    """
    plain = dataclasses.replace(problem, vocabulary="ends")
    if problem.vp > 1:
        base = generate(problem)
    else:
        base = _without_last(generate(_longer(plain, BARRIERS[problem.vocabulary])), plain)
    base = dataclasses.replace(base, vocabulary=problem.vocabulary)
    return dataclasses.replace(base, lanes=_Placing(base, problem.seconds).finish())


def _longer(problem: Problem, stages: int) -> Problem:
    """`problem` with so many more stages at its end, as long as all S and T are."""
    table, costs = problem.routes.table, problem.seconds
    count = problem.routes.num_stages
    rows = costs.table(count)
    s, t = (sum(rows[kind]) / count for kind in (Kind.S, Kind.T))
    lasts = [[s], [t]][:stages]
    f_s = [*rows[Kind.F], *(x for last in lasts for x in last)]
    none = [0.0] * stages
    longer = Costs(
        f_s, [*rows[Kind.B], *none], i_s=[*rows[Kind.I], *none], w_s=[*rows[Kind.W], *none], action_s=costs.action_s,
        send_s=_within(problem, costs),
    )  # fmt: skip
    return dataclasses.replace(problem, routes=Routes((*table, *(table[-1],) * stages)), costs=longer)


def _within(problem: Problem, costs: Costs) -> Callable[[int, int], float] | float:
    """Seconds of a message; those of lanes that are not there take none."""
    send_s, count = costs.send_s, len(problem.placement)
    if not callable(send_s):
        return send_s
    return lambda source, destination: send_s(source, destination) if max(source, destination) < count else 0.0


def _without_last(schedule: Schedule, problem: Problem) -> Schedule:
    """The lanes of `problem` alone."""
    lanes = schedule.lanes[: len(problem.placement)]
    return dataclasses.replace(schedule, routes=problem.routes, lanes=lanes, placement=problem.placement)


class _Lane:
    """What one lane has to do next: the given order, and passes that are ready."""

    def __init__(self, actions: tuple[Action, ...]) -> None:
        self.given = deque(actions)
        self.free_s = 0.0
        self.e: deque[int] = deque()  # works whose lookup is due
        self.s: deque[int] = deque()
        self.later: deque[tuple[Kind, int]] = deque()  # T and G
        self.actions: list[Action] = []


class _Placing:
    """A run of the given order in which every lane takes passes as they become ready."""

    def __init__(self, base: Schedule, costs: Costs) -> None:
        self.ways = find_ways(base)
        self.gates = Gates(base, self.ways)
        self.base, self.m, self.costs = base, base.routes.num_microbatches, costs
        self.table = costs.table(base.routes.num_stages)
        self.urgent = base.vocabulary == "two_barriers"
        self.lanes = [_Lane(actions) for actions in base.lanes]
        self.arrived: dict[int, float] = {}  # message -> when it is there
        self.missing, self.last_s = dict(self.gates.missing), dict[int, float]()
        self.events: list[tuple[float, int, int]] = [(0.0, lane, -1) for lane in range(base.num_lanes)]
        self.due = [  # first forwards by lane of the first stage, whose lookups follow in this order
            deque(a.microbatch for a in lane if a.kind is Kind.F and a.stage == 0) for lane in base.lanes
        ]

    def finish(self) -> tuple[tuple[Action, ...], ...]:
        for lane in range(len(self.lanes)):
            for _ in range(_AHEAD):
                self.call(lane, 0.0)
        while self.events:
            now, at, message = heapq.heappop(self.events)
            if message >= self.gates.base:
                self.admit(self.lanes[at], message)
            if self.lanes[at].free_s <= now:
                self.choose(at, now)
        assert not any(lane.given or lane.e or lane.s or lane.later for lane in self.lanes), "a lane waits for ever"
        return tuple(tuple(lane.actions) for lane in self.lanes)

    def call(self, lane: int, now: float) -> None:
        """The lookup of the next microbatch that comes to the first stage on `lane` is due on all lanes of its way."""
        if self.due[lane]:
            for work in self.gates.of[self.due[lane].popleft()]:
                self.lanes[self.ways.lane_of[work]].e.append(work)
                heapq.heappush(self.events, (now, self.ways.lane_of[work], -1))

    def admit(self, lane: _Lane, message: int) -> None:
        """What an S, T or G waits for is there."""
        work, which = divmod(message - self.gates.base, 3)
        if WAITING[which] is Kind.S:
            lane.s.append(work)
        else:
            lane.later.append((WAITING[which], work))

    def choose(self, at: int, now: float) -> None:
        lane = self.lanes[at]
        while True:
            if lane.e:
                self.run(at, Kind.E, lane.e.popleft(), now)
            elif lane.s:
                self.run(at, Kind.S, lane.s.popleft(), now)
            elif lane.later and (self.urgent or len(lane.later) > 2 * _BACKLOG or not self.ready(lane, now)):
                self.run(at, *lane.later.popleft(), now)
            elif self.ready(lane, now):
                action = lane.given.popleft()
                self.run(at, action.kind, action.stage * self.m + action.microbatch, now)
            else:
                return
            if lane.free_s > now:
                return

    def ready(self, lane: _Lane, now: float) -> bool:
        """Whether the next action of the given order has its input."""
        if not lane.given:
            return False
        action = lane.given[0]
        message = self.message(action.kind, action.stage * self.m + action.microbatch)
        return message < 0 or self.arrived.get(message, now + 1.0) <= now

    def message(self, kind: Kind, work: int) -> int:
        if kind is Kind.F:
            return 2 * work
        return 2 * work + 1 if kind in (Kind.B, Kind.I) else -1

    def run(self, at: int, kind: Kind, work: int, now: float) -> None:
        lane, (stage, mb) = self.lanes[at], divmod(work, self.m)
        end = now + self.table[kind][stage] + self.costs.action_s
        lane.actions.append(Action(stage, kind, mb))
        lane.free_s = end
        heapq.heappush(self.events, (end, at, -1))
        if kind is Kind.F:
            if stage == 0:
                self.call(at, now)
            if work < self.gates.last:
                self.arrive(2 * (work + self.m), end, at)
        elif kind in (Kind.B, Kind.I) and stage > 0:
            self.arrive(2 * (work - self.m) + 1, end, at)
        for message in self.gates.feeds(CODE[kind], work):
            self.last_s[message] = max(
                end + self.costs.hop_s(at, self.gates.receiver(message)), self.last_s.get(message, 0.0)
            )
            self.missing[message] -= 1
            if not self.missing[message]:
                self.enter(message, self.last_s.pop(message))

    def arrive(self, message: int, end: float, source: int) -> None:
        self.enter(message, end + self.costs.hop_s(source, self.gates.receiver(message)))

    def enter(self, message: int, when: float) -> None:
        """From `when` on `message` is there."""
        self.arrived[message] = when
        heapq.heappush(self.events, (when, self.gates.receiver(message), message))
