"""Equal replicas as pipelines of their own: what turns a rule for one pipeline into a schedule.

Where every stage has the same replicas and these pass their microbatches on to each other only, replica r of all
stages is a *column*: a pipeline that shares no lane with another one. A rule then says what the P lanes of one column
do, and columns with equally many microbatches do the same, so that they can run in lockstep. Pipelines of other shape
are decided by events (`ready`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.generators.ready import in_order_of_events, limits
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.space.runs import host_of


@dataclass(frozen=True)
class Column:
    """One pipeline.

    Attributes:
        microbatches: m, numbered from 0.
        depth: P, lanes, numbered from 0.
        vp: runs of layers of each lane.
        folded: they lie in a V, not in a loop.
        f_s, i_s, w_s, b_s: seconds of F, I, W and B of each run, the host's included.
        lanes: where the column's lanes are in the whole schedule.
        hop_s: of a message between two of those.
        cap: as in `Problem`.
    """

    microbatches: int
    depth: int
    vp: int
    folded: bool
    f_s: Sequence[float]
    i_s: Sequence[float]
    w_s: Sequence[float]
    b_s: Sequence[float]
    lanes: Sequence[int]
    hop_s: Callable[[int, int], float]
    cap: float

    @cached_property
    def lane_of(self) -> list[int]:
        """The lane of each run."""
        return [host_of(run, self.depth, self.folded) for run in range(self.depth * self.vp)]

    def alone(self, microbatches: int | None = None) -> Problem:
        """The column as a whole problem; with another number of microbatches."""
        routes = Routes(((0,) * (microbatches or self.microbatches),) * len(self.lane_of))
        costs = Costs(self.f_s, self.b_s, self.hop, i_s=self.i_s, w_s=self.w_s)
        return Problem(routes, self.vp, self.folded, costs, self.cap)

    def hop(self, source: int, destination: int) -> float:
        """Seconds of a message between two lanes of the column."""
        return self.hop_s(self.lanes[source], self.lanes[destination])


Rows = Sequence[Sequence[Action]]  # what each lane of a column does
Rule = Callable[[Column], Rows]


def schedule_columns(name: str, problem: Problem, rule: Rule, keeps: float, folded: bool = False) -> Schedule:
    """`rule` for every column of `problem`, or the order of events where it has none.

    Args:
        keeps: most microbatches, each of all runs of a lane, whose activations a lane of a column keeps under `rule`.
        folded: the rule is for runs in a V, not in a loop.
    """
    columns = columns_of(problem) if problem.vp == 1 or problem.folded == folded else []
    if not columns:
        lanes = in_order_of_events(problem, limits(problem, keeps))
        return Schedule(name, problem.routes, lanes, problem.placement)
    made: dict[int, Rows] = {}
    rows: dict[int, tuple[Action, ...]] = {}
    for places, microbatches in columns:
        m = len(microbatches)
        if m not in made:
            made[m] = rule(column_of(problem, places, m))
        for lane, row in zip(places, made[m], strict=True):
            rows[lane] = tuple(row) if len(columns) == 1 else _renumbered(row, microbatches)
    return Schedule(name, problem.routes, tuple(rows[lane] for lane in range(len(rows))), problem.placement)


def check_v(name: str, problem: Problem) -> None:
    """Raises ValueError if the layers do not lie in a V of two runs per lane."""
    if problem.vp == 2 and problem.folded:
        return
    has = f"parallel.vp={problem.vp}" if problem.vp != 2 else "parallel.placement=loop"
    knob = "parallel.vp=2" if problem.vp != 2 else "parallel.placement=v"
    other = "1f1b" if problem.vp == 1 else "interleaved"
    raise ValueError(
        f"parallel.schedule={name} has two runs of layers per stage in a V, not {has}; set {knob}, or "
        f"parallel.schedule={other}"
    )


def columns_of(problem: Problem) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The lanes and the microbatches of each column, or nothing where lanes of different columns meet."""
    routes = problem.routes
    mine: dict[tuple[int, ...], list[int]] = {}
    for mb, way in enumerate(zip(*routes.table, strict=True)):
        mine.setdefault(tuple(problem.placement[at] for at in enumerate(way)), []).append(mb)
    if any(count != len(mine) for count in routes.replicas):
        return []
    depth = problem.depth
    return [(way[:depth], tuple(microbatches)) for way, microbatches in mine.items()]


def alone_by_events(column: Column, most: int) -> Rows:
    """What each lane of a column does that keeps at most so many (run, microbatch) activations."""
    return in_order_of_events(column.alone(), [most] * column.depth)


def trimmed(rows: Rows, microbatches: int) -> Rows:
    """Without the microbatches from `microbatches` on: what is left of a schedule is one."""
    return [[action for action in row if action.microbatch < microbatches] for row in rows]


def column_of(problem: Problem, lanes: tuple[int, ...], microbatches: int) -> Column:
    """The column of `problem` on those `lanes`."""
    costs = problem.seconds
    table = costs.table(problem.routes.num_stages)
    f_s, i_s, w_s, b_s = ([s + costs.action_s for s in table[kind]] for kind in (Kind.F, Kind.I, Kind.W, Kind.B))
    return Column(
        microbatches, problem.depth, problem.vp, problem.folded, f_s, i_s, w_s, b_s, lanes, costs.hop_s, problem.cap
    )


def _renumbered(row: Sequence[Action], microbatches: Sequence[int]) -> tuple[Action, ...]:
    return tuple([Action(action.stage, action.kind, microbatches[action.microbatch]) for action in row])
