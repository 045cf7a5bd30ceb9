"""A pipeline decided by events: whenever a lane is free, it takes the best action that is ready.

Works for any routes, placement, costs and limits: after a loss stages differ in replicas, and closed rules end. A free
lane takes I, which others wait for; else F while it may keep more activations; else W, which nobody waits for (list
scheduling, Graham 1966, with the priorities of Qi et al. 2023, arXiv:2401.10241, section 3).

No lane ever waits for memory in a cycle. All lanes share one order of the microbatches, and a lane starts a forward
only if its unfinished microbatches could then still end in that order, one after the other (the banker's rule, Dijkstra
1965). So the first unfinished one of all can always go on, and room for one microbatch per lane is enough.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.problem import Problem


@dataclass(frozen=True)
class Priority:
    """What a free lane prefers.

    Attributes:
        grouped: forwards go in groups of P microbatches, through one run of layers after the other; else the last run
            goes first.
        patience: a lane idles rather than start a W during which an I arrives, if that is less than this share of the
            W away.
    """

    grouped: bool = False
    patience: float = 0.0


def limits(problem: Problem, keeps: float) -> list[int]:
    """Per lane, of how many (stage, microbatch) it may keep the activations; never more than the cap of `problem`.

    Args:
        keeps: microbatches of a lane of a pipeline whose stages have equal replicas. Where they differ a lane has its
            share of all lanes', and one microbatch more, as they reach it unevenly.
    """
    replicas, vp = problem.routes.replicas[: problem.depth], problem.vp
    spare, mean = len(set(replicas)) > 1, sum(replicas) / len(replicas)
    cap = floor(problem.cap * vp + 1e-9) or problem.routes.num_microbatches * vp
    most = [ceil(vp * (keeps * mean / count + spare) - 1e-9) for count in replicas]
    return [min(cap, limit) for limit, count in zip(most, replicas, strict=True) for _ in range(count)]


def in_order_of_events(
    problem: Problem,
    limits: Sequence[int],
    priority: Priority = Priority(),
) -> tuple[tuple[Action, ...], ...]:
    """Every lane's compute actions: F, I and W.

    Args:
        limits: per lane, most (stage, microbatch) activations, from F to W; at least vp is kept in any case.
    """
    return _Run(problem, limits, priority).finish()


class _Lane:
    """What one lane has to do, and what is ready."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.alive = 0
        self.free_s = 0.0
        self.f: list[tuple[int, int, int]] = []  # heap of (preference, place of the microbatch, work)
        self.i: list[tuple[int, int]] = []  # heap of (place of the microbatch, work)
        self.w: deque[int] = deque()
        self.coming: list[float] = []  # heap of when an I will be ready
        self.places: list[int] = []  # of its microbatches in the order of all, ascending
        self.first = 0  # of `places`, the first unfinished
        self.runs: Counter[int] = Counter()  # by place, how often the microbatch comes
        self.most_runs = 0
        self.started: Counter[int] = Counter()  # its forwards so far
        self.ended: Counter[int] = Counter()  # and its W
        self.actions: list[Action] = []

    def may_start(self, place: int) -> bool:
        """Whether after a forward of the microbatch at `place` all that are unfinished could still end, in order."""
        free = self.limit - self.alive - 1
        if free < 0:
            return False
        for first in range(self.first, len(self.places)):
            at = self.places[first]
            started = self.started[at] + (at == place)
            if free < self.runs[at] - started:
                return False
            if not self.ended[at] and free + started >= self.most_runs:
                return True  # its end leaves room for any other one
            free += started - self.ended[at]
        return True


class _Run:
    """Events are numbers: of N works (stage · m + microbatch) F is ready, from N on I, from 2N on a lane is free."""

    def __init__(self, problem: Problem, limits: Sequence[int], priority: Priority) -> None:
        routes, costs = problem.routes, problem.seconds
        self.priority, self.m, self.stages = priority, routes.num_microbatches, routes.num_stages
        self.works = self.m * self.stages
        table = costs.table(self.stages)
        self.f_s, self.i_s, self.w_s = (
            [s + costs.action_s for s in table[kind]] for kind in (Kind.F, Kind.I, Kind.W)
        )  # fmt: skip
        self.hop_s = costs.hop_s
        self.lane_of = [problem.placement[s, r] for s, row in enumerate(routes.table) for r in row]
        self.lanes = [_Lane(limit) for limit in limits]
        self.place = [0] * self.m
        for place, mb in enumerate(routes.order()):
            self.place[mb] = place
            for at, runs in Counter(self.lane_of[mb :: self.m]).items():
                lane = self.lanes[at]
                lane.places.append(place)
                lane.runs[place] = runs
                lane.most_runs = max(lane.most_runs, runs)
                lane.limit = max(lane.limit, runs)
        self.group = problem.depth * max(routes.replicas)
        self.events = [(0.0, mb) for mb in range(self.m)]

    def finish(self) -> tuple[tuple[Action, ...], ...]:
        events, works = self.events, self.works
        while events:
            now = events[0][0]
            touched = set[int]()
            while events and events[0][0] <= now:
                number = heapq.heappop(events)[1]
                touched.add(self.lane_of[number % works] if number < 2 * works else number - 2 * works)
                if number < works:
                    stage, mb = divmod(number, self.m)
                    place = self.place[mb]
                    preference = place // self.group * self.stages + stage if self.priority.grouped else -stage
                    heapq.heappush(self.lanes[self.lane_of[number]].f, (preference, place, number))
                elif number < 2 * works:
                    lane = self.lanes[self.lane_of[number - works]]
                    heapq.heappop(lane.coming)
                    heapq.heappush(lane.i, (self.place[number % self.m], number - works))
            for at in sorted(touched):
                if self.lanes[at].free_s <= now:
                    self.choose(at, now)
        assert all(lane.first == len(lane.places) for lane in self.lanes), "a lane waits for ever"
        return tuple(tuple(lane.actions) for lane in self.lanes)

    def choose(self, at: int, now: float) -> None:
        """Start one action of lane `at`, if one is ready."""
        lane, priority = self.lanes[at], self.priority
        if lane.i:
            self.start_i(at, heapq.heappop(lane.i)[1], now)
            return
        if lane.f:
            work = self.pick_f(lane)
            if work >= 0:
                self.start_f(at, work, now)
                return
        if lane.w:
            seconds = self.w_s[lane.w[0] // self.m]
            if not lane.coming or lane.coming[0] - now >= priority.patience * seconds:
                self.start_w(at, lane.w.popleft(), now)

    def pick_f(self, lane: _Lane) -> int:
        """The best forward that may start, else -1."""
        passed = []
        found = -1
        while lane.f:
            best = heapq.heappop(lane.f)
            if lane.may_start(best[1]):
                found = best[2]
                break
            passed.append(best)
        for entry in passed:
            heapq.heappush(lane.f, entry)
        return found

    def start_f(self, at: int, work: int, now: float) -> None:
        lane, (stage, mb) = self.lanes[at], divmod(work, self.m)
        end = self.begin(at, Action(stage, Kind.F, mb), now + self.f_s[stage])
        lane.alive += 1
        place = self.place[mb]
        lane.started[place] += 1
        if stage + 1 < self.stages:
            following = work + self.m
            heapq.heappush(self.events, (end + self.hop_s(at, self.lane_of[following]), following))
        else:
            self.announce(at, work, end)

    def start_i(self, at: int, work: int, now: float) -> None:
        stage, mb = divmod(work, self.m)
        end = self.begin(at, Action(stage, Kind.I, mb), now + self.i_s[stage])
        self.lanes[at].w.append(work)
        if stage > 0:
            before = work - self.m
            self.announce(self.lane_of[before], before, end + self.hop_s(at, self.lane_of[before]))

    def start_w(self, at: int, work: int, now: float) -> None:
        lane, (stage, mb) = self.lanes[at], divmod(work, self.m)
        self.begin(at, Action(stage, Kind.W, mb), now + self.w_s[stage])
        lane.alive -= 1
        place = self.place[mb]
        lane.ended[place] += 1
        while (
            lane.first < len(lane.places) and lane.ended[lane.places[lane.first]] == lane.runs[lane.places[lane.first]]
        ):
            lane.first += 1

    def begin(self, at: int, action: Action, end: float) -> float:
        lane = self.lanes[at]
        lane.actions.append(action)
        lane.free_s = end
        heapq.heappush(self.events, (end, 2 * self.works + at))
        return end

    def announce(self, at: int, work: int, ready_s: float) -> None:
        """I of `work` will be ready on lane `at`."""
        heapq.heappush(self.lanes[at].coming, ready_s)
        heapq.heappush(self.events, (ready_s, self.works + work))
