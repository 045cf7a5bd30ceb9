"""The lanes of one column while a rule decides, action by action, what they do: times, activations and idleness."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators.columns import Column, Rows


class Stuck(Exception):
    """A rule came to an action that cannot run: its input is not there, or too many activations are."""


class Clock:
    """Runs each action as soon as its lane is free and its input has arrived.

    Attributes:
        most: (run, microbatch) activations that a lane may keep.
        rows: what the lanes do, so far.
        now: when each lane is free.
        alive: activations that it keeps.
        idle: seconds that it has waited since its first action.
        worst: most of `idle`.
        waiting: (run, microbatch) whose W is still to do, the oldest first.
        f_end, i_end: by run, the ends of what was done, microbatch by microbatch.
    """

    def __init__(self, column: Column, most: int) -> None:
        lanes, lane_of = range(column.depth), column.lane_of
        self.column, self.lane_of, self.most = column, lane_of, most
        self.rows: list[list[Action]] = [[] for _ in lanes]
        self.now = [0.0 for _ in lanes]
        self.alive = [0 for _ in lanes]
        self.idle = [0.0 for _ in lanes]
        self.worst = 0.0
        self.waiting: list[deque[tuple[int, int]]] = [deque() for _ in lanes]
        self.f_end: list[list[float]] = [[] for _ in lane_of]
        self.i_end: list[list[float]] = [[] for _ in lane_of]
        self.f_hop = [0.0, *(column.hop(a, b) for a, b in pairwise(lane_of))]
        self.i_hop = [*(column.hop(b, a) for a, b in pairwise(lane_of)), 0.0]

    @property
    def step_s(self) -> float:
        return max(self.now)

    def f_arrival(self, run: int) -> float:
        """When the input of the run's next forward is there; -1 for the first run, which needs none."""
        if run == 0:
            return -1.0
        made, done = self.f_end[run - 1], len(self.f_end[run])
        if done >= len(made):
            raise Stuck
        return made[done] + self.f_hop[run]

    def i_arrival(self, run: int) -> float:
        """When the gradient for the run's next I is there."""
        done = len(self.i_end[run])
        if run == len(self.lane_of) - 1:
            return self.f_end[run][done] if done < len(self.f_end[run]) else self._stuck()
        made = self.i_end[run + 1]
        return made[done] + self.i_hop[run] if done < len(made) else self._stuck()

    def f(self, run: int) -> None:
        """The run's next forward."""
        lane = self.lane_of[run]
        if self.alive[lane] >= self.most or len(self.f_end[run]) >= self.column.microbatches:
            raise Stuck
        start = self._start(lane, self.f_arrival(run))
        self.rows[lane].append(Action(run, Kind.F, len(self.f_end[run])))
        self.alive[lane] += 1
        self.now[lane] = end = start + self.column.f_s[run]
        self.f_end[run].append(end)

    def i(self, run: int) -> None:
        """The run's next I."""
        lane, mb = self.lane_of[run], len(self.i_end[run])
        start = self._start(lane, self.i_arrival(run))
        self.rows[lane].append(Action(run, Kind.I, mb))
        self.waiting[lane].append((run, mb))
        self.now[lane] = end = start + self.column.i_s[run]
        self.i_end[run].append(end)

    def w(self, lane: int) -> None:
        """The lane's oldest W."""
        if not self.waiting[lane]:
            raise Stuck
        run, mb = self.waiting[lane].popleft()
        self.rows[lane].append(Action(run, Kind.W, mb))
        self.now[lane] += self.column.w_s[run]
        self.alive[lane] -= 1

    def make_room(self, lane: int) -> None:
        """W until the lane may start a forward."""
        while self.alive[lane] >= self.most:
            self.w(lane)

    def fill(self, lane: int, until: float, slack: float, over: bool, under: bool) -> None:
        """W that end before the lane's next input arrives `until`; then perhaps one that ends after it.

        Args:
            over, under: whether to add that one where the lane would else wait for more, or not for more, than `slack`.
        """
        waiting, w_s = self.waiting[lane], self.column.w_s
        while waiting and self.now[lane] + w_s[waiting[0][0]] <= until:
            self.w(lane)
        wait = until - self.now[lane]
        if waiting and wait > 0 and (over if wait > slack else under):
            self.w(lane)

    def finish(self) -> None:
        """All W that are left."""
        for lane, waiting in enumerate(self.waiting):
            while waiting:
                self.w(lane)

    def _start(self, lane: int, arrival: float) -> float:
        now = self.now[lane]
        if arrival <= now:
            return now
        if self.rows[lane]:
            self.idle[lane] += arrival - now
            self.worst = max(self.worst, self.idle[lane])
        return arrival

    def _stuck(self) -> float:
        raise Stuck


def least_s(column: Column) -> float:
    """No order ends sooner: a lane has its work to do once the first forward has come to it."""
    lane_of, work, start, first = column.lane_of, [0.0] * column.depth, 0.0, dict[int, float]()
    for run, lane in enumerate(lane_of):
        work[lane] += column.microbatches * (column.f_s[run] + column.i_s[run] + column.w_s[run])
        start += column.hop(lane_of[run - 1], lane) if run else 0.0
        first.setdefault(lane, start)
        start += column.f_s[run]
    return max(first[lane] + seconds for lane, seconds in enumerate(work))


def step_s(column: Column, rows: Rows) -> float:
    """When the last lane of a column ends that does `rows`."""
    lane_of = column.lane_of
    seconds = {Kind.F: column.f_s, Kind.I: column.i_s, Kind.W: column.w_s, Kind.B: column.b_s}
    step = {Kind.F: -1, Kind.I: 1, Kind.B: 1, Kind.W: 0}
    ends: dict[tuple[int, bool, int], float] = {}
    now, at, left = [0.0] * len(rows), [0] * len(rows), list(range(len(rows)))
    last = len(lane_of) - 1
    while left:
        moved = False
        for lane in left:
            row = rows[lane]
            while at[lane] < len(row):
                run, kind, mb = row[at[lane]].stage, row[at[lane]].kind, row[at[lane]].microbatch
                before, forward = run + step[kind], kind is Kind.F
                if 0 <= before <= last and before != run:
                    end = ends.get((before, forward, mb))
                    if end is None:
                        break
                    now[lane] = max(now[lane], end + column.hop(lane_of[before], lane))
                now[lane] += seconds[kind][run]
                if kind is not Kind.W:
                    ends[run, forward, mb] = now[lane]
                at[lane] += 1
                moved = True
        assert moved, "the lanes wait in a cycle"
        left = [lane for lane in left if at[lane] < len(rows[lane])]
    return max(now)
