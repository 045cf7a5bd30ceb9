"""ZB-V (Qi et al. 2023, arXiv:2401.10241, section 5): two runs of layers per lane in a V, no bubble but the start's, at
the activations of 1F1B.

Where F, I and W of all runs take equally long, the order is a closed rule. Otherwise it is decided action by action on
a clock: forwards fill the V, then lanes take backwards and forwards in rounds, and put W where they would wait. A lane
that has waited less than the worst one may as well wait: how much that is, a second run knows from the first.
"""

from __future__ import annotations

from dataclasses import replace
from math import floor

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators.clock import Clock, Stuck, least_s
from trainsys.schedule.generators.columns import Column, Rows, alone_by_events, check_v, schedule_columns, trimmed
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only ZB-V; its cap is the one given, or P microbatches.

    Raises:
        ValueError: if the layers do not lie in a V of two runs per lane.
    """
    check_v("zbv", problem)
    most = floor(2 * problem.cap + 1e-9) or 2 * problem.depth

    def rule(column: Column) -> Rows:
        equal = len({*column.f_s, *column.i_s, *column.w_s}) == 1 and not _any_hop(column)
        if equal and column.microbatches >= 2 * column.depth - 1 and most >= 2 * column.depth:
            return closed(column)
        return greedy(column, most) or alone_by_events(column, most)

    return schedule_columns("zbv", problem, rule, keeps=most / 2, folded=True)


def _any_hop(column: Column) -> bool:
    """Whether messages along the V take any time."""
    lanes = range(column.depth - 1)
    return any(column.hop(a, a + 1) or column.hop(a + 1, a) for a in lanes)


def closed(column: Column) -> Rows:
    """The order for equal F, I and W; of at least 2P - 1 microbatches, less those that there are not."""
    depth = column.depth
    m = max(2 * depth - 1, column.microbatches)
    return trimmed([_lane(lane, depth, m) for lane in range(depth)], column.microbatches)


def _lane(lane: int, depth: int, m: int) -> list[Action]:
    down, up = lane, 2 * depth - 1 - lane  # its runs
    f0, i0, w0 = ([Action(down, kind, mb) for mb in range(m)] for kind in (Kind.F, Kind.I, Kind.W))
    f1, i1, w1 = ([Action(up, kind, mb) for mb in range(m)] for kind in (Kind.F, Kind.I, Kind.W))
    lead, turned = 2 * (depth - lane) - 1, depth - lane
    row = f0[:lead]
    for k in range(lane):
        row += (f1[k], f0[lead + k])
    lead += lane  # forwards of the first run
    for k in range(turned):
        row += (f1[lane + k], i1[k], w1[k])
    rest = m - depth  # rounds in which all six take part, as forwards of the first run are left
    for k in range(rest):
        row += f0[lead + k : lead + k + 1]
        row += (i0[k], w0[k], f1[depth + k], i1[turned + k], w1[turned + k])
    for k in range(lane):
        row += (i0[rest + k], i1[turned + rest + k])
    for k in range(turned):
        row += (i0[rest + lane + k], w0[rest + k])
    return row + w1[turned + rest :] + w0[rest + turned :]


def greedy(column: Column, most: int) -> Rows | None:
    """The shortest of the orders that the clock finds, each with `most` activations per lane; None if it finds none.

    Of a long step a shorter one says whether W is to fill waits for I and for F.
    """
    every = [(fill_i, fill_f) for fill_i in (True, False) for fill_f in (True, False)]
    shorter = most + column.depth
    if column.microbatches > 2 * shorter:
        run = _best(replace(column, microbatches=shorter), most, every)
        every = [(run.fill_i, run.fill_f)] if run else every
    best = _best(column, most, every)
    return best.rows if best else None


def _best(column: Column, most: int, every: list[tuple[bool, bool]]) -> _Fill | None:
    best: _Fill | None = None
    least = least_s(column) + 1e-9
    for fill_i, fill_f in every:
        found = _improved(column, most, fill_i, fill_f)
        if found is not None and (best is None or found.step_s < best.step_s - 1e-12):
            best = found
        if best is not None and best.step_s <= least:
            break
    return best


def _improved(column: Column, most: int, fill_i: bool, fill_f: bool) -> _Fill | None:
    """Runs again, with the idleness that it came to, while that improves it."""
    best: _Fill | None = None
    idle = [-1.0] * column.depth
    while True:
        run = _Fill(column, most, fill_i, fill_f, idle)
        try:
            run.decide()
        except Stuck:
            return best
        if best is not None and run.worst >= best.worst:
            return best
        best, idle = run, run.idle


class _Fill(Clock):
    """One run. A microbatch goes down and up the V in F, then in I: legs 0 to 3; `done[lane][leg]` counts them."""

    def __init__(self, column: Column, most: int, fill_i: bool, fill_f: bool, approved: list[float]) -> None:
        depth = column.depth
        super().__init__(column, most)
        self.fill_i, self.fill_f = fill_i, fill_f
        self.more = [max(approved) - idle for idle in approved]
        self.depth, self.m = depth, column.microbatches
        self.done = [[0, 0, 0, 0] for _ in range(depth)]

    def decide(self) -> None:
        self.descend()
        self.spread()
        for _ in range(2 * self.m):
            self.backwards()
            for lane in range(self.depth):
                self.forward(lane)
        self.finish()

    def run_of(self, lane: int, leg: int) -> int:
        return lane if leg in (0, 3) else 2 * self.depth - 1 - lane

    def go(self, lane: int, leg: int) -> None:
        run = self.run_of(lane, leg)
        if leg < 2:
            self.f(run)
        else:
            self.i(run)
        self.done[lane][leg] += 1

    def descend(self) -> None:
        """The first microbatch goes down and up, and more of them down while it is under way."""
        for lane in range(self.depth):
            self.go(lane, 0)
        for lane in reversed(range(self.depth)):
            while (
                lane < self.depth - 1
                and self.alive[lane] + 2 + 2 * lane <= self.most
                and self.now[lane] + self.column.f_s[lane] <= self.f_arrival(self.run_of(lane, 1))
                and self.done[lane][0] < self.m
            ):
                for above in range(lane + 1):
                    self.go(above, 0)
            self.go(lane, 1)

    def spread(self) -> None:
        """As many forwards on every lane as on the one before."""
        leg, done = 0, self.done
        for lane in range(1, self.depth):
            above = done[lane - 1]
            while done[lane][0] + done[lane][1] < above[0] + above[1] or done[lane][1] <= above[1] < self.m:
                for at in reversed(range(lane, self.depth)):
                    if done[at][leg] < self.m:
                        self.go(at, leg)
                leg = 1 - leg

    def backwards(self) -> None:
        """One I per lane: up the V where the gradient has come, else down."""
        last, done = self.depth - 1, self.done
        up = [
            lane
            for lane in range(self.depth)
            if done[lane][3] < done[lane][2]
            and (lane == last or done[lane][2] >= self.m or done[lane + 1][3] > done[lane][3])
        ]
        for lane, leg in [(lane, 3) for lane in reversed(up)] + [
            (lane, 2) for lane in range(self.depth) if lane not in up
        ]:
            if lane != (0 if leg == 2 else last):
                arrival = self.i_arrival(self.run_of(lane, leg))
                self.fill(lane, arrival, self.slack(lane), leg == 3 or self.fill_i, False)
            self.go(lane, leg)

    def forward(self, lane: int) -> None:
        """One F of the lane: up the V where the input has come, else down."""
        last, done = self.depth - 1, self.done
        mine = done[lane]
        if mine[1] >= self.m:
            return
        if mine[1] < mine[0] and (lane == last or done[lane + 1][1] > mine[1]):
            leg = 1
        elif mine[0] < self.m and (lane == 0 or done[lane - 1][0] > mine[0]):
            leg = 0
        else:
            return
        self.make_room(lane)
        if lane != (0 if leg == 0 else last):
            self.fill(lane, self.f_arrival(self.run_of(lane, leg)), self.slack(lane), self.fill_f, False)
        self.go(lane, leg)

    def slack(self, lane: int) -> float:
        """How much longer the lane may wait than it has."""
        return max(self.worst, self.more[lane]) - self.idle[lane]
