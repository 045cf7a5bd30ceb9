"""DualPipeV (DeepSeek-AI 2024, arXiv:2412.19437, section 3.2.1, cut in half): two runs of layers per lane in a V, where
F of the one goes with a backward of the other.

In the middle W follows its I at once, as one backward; where a lane would wait it comes later. Nothing is gained here
by computing a pair together: its actions follow each other. A lane keeps (2P + 1)/2 microbatches' activations at most.
"""

from __future__ import annotations

from collections import deque

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators.columns import Column, Rows, check_v, schedule_columns, trimmed
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only DualPipeV; of less than 2P microbatches the first of those of 2P.

    Raises:
        ValueError: if the layers do not lie in a V of two runs per lane.
    """
    check_v("dualpipev", problem)
    return schedule_columns("dualpipev", problem, rule, keeps=problem.depth + 0.5, folded=True)


def rule(column: Column) -> Rows:
    """What each lane does."""
    m = max(column.microbatches, 2 * column.depth)
    return trimmed([_Lane(lane, column.depth).decide(m) for lane in range(column.depth)], column.microbatches)


class _Lane:
    """One lane; run 0 goes down the V, run 1 up."""

    def __init__(self, lane: int, depth: int) -> None:
        self.lane, self.depth = lane, depth
        self.runs = (lane, 2 * depth - 1 - lane)
        self.forwards, self.backwards = [0, 0], [0, 0]
        self.waiting: deque[Action] = deque()  # W still to do
        self.row: list[Action] = []

    def decide(self, m: int) -> list[Action]:
        """The eight phases of the published order."""
        behind = self.depth - 1 - self.lane
        for _ in range(2 * behind):
            self.f(0)
        for _ in range(self.lane + 1):
            self.f(0)
            self.f(1)
        for _ in range(behind):
            self.i(1)
            self.w()
            self.f(1)
        for _ in range(m - 2 * self.depth + self.lane + 1):
            self.f(0)
            self.b(1)
            self.f(1)
            self.b(0)
        for _ in range(behind):
            self.b(1)
            self.f(1)
            self.b(0)
        for k in range(2 * (self.lane + 1)):  # split from half of them on
            (self.b if k <= self.lane else self.i)(1 - k % 2)
        for _ in range(behind):
            self.w()
            self.i(0)
        for _ in range(self.lane + 1):
            self.w()
        return self.row

    def f(self, half: int) -> None:
        self.row.append(Action(self.runs[half], Kind.F, self.forwards[half]))
        self.forwards[half] += 1

    def b(self, half: int) -> None:
        """A whole backward."""
        self.i(half)
        self.row.append(self.waiting.pop())

    def i(self, half: int) -> None:
        run, mb = self.runs[half], self.backwards[half]
        self.row.append(Action(run, Kind.I, mb))
        self.waiting.append(Action(run, Kind.W, mb))
        self.backwards[half] += 1

    def w(self) -> None:
        self.row.append(self.waiting.popleft())
