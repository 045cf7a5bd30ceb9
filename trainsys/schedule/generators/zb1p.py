"""ZB-1P, also ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1): 1F1B whose backward is split into I and W.

I goes on to the stage before at once; W can wait. Lane r has W wait for r of them, so that every lane keeps P
microbatches, where 1F1B has its first lane do so. The bubble is (P - 1)(tF + tI - tW)/vp. Under vp the order of F and I
is that of the interleaved schedule, with one forward less in advance per lane behind.
"""

from __future__ import annotations

from itertools import pairwise

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators.columns import Column, Rows, schedule_columns
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only schedule; runs of layers that lie in a V, and ragged replicas, are decided by events."""
    return schedule_columns("zb1p", problem, rule, keeps=problem.depth)


def rule(column: Column) -> Rows:
    """What each lane does."""
    depth, vp, m = column.depth, column.vp, column.microbatches
    groups = max(1, m // depth) if vp > 1 else 1
    bounds = [-(-g * m // groups) for g in range(groups + 1)]
    parts = [range(a, b) for a, b in pairwise(bounds)]
    ahead = (vp - 1) * max(map(len, parts))
    rows = []
    for lane in range(depth):
        runs = range(lane, depth * vp, depth)
        forward = [(run, mb) for part in parts for run in runs for mb in part]
        backward = [(run, mb) for part in parts for run in reversed(runs) for mb in part]
        rows.append(_lane(forward, backward, min(m * vp, ahead + depth - 1 - lane), lane))
    return rows


def _lane(forward: list[tuple[int, int]], backward: list[tuple[int, int]], ahead: int, late: int) -> list[Action]:
    """`ahead` forwards, then F and I in turns, and W once more than `late` of them wait."""
    count = len(forward)
    f = [Action(run, Kind.F, mb) for run, mb in forward]
    i = [Action(run, Kind.I, mb) for run, mb in backward]
    w = [Action(run, Kind.W, mb) for run, mb in backward]
    row = f[:ahead]
    for k in range(count):
        row += f[ahead + k : ahead + k + 1]
        row.append(i[k])
        row += w[k - late : k - late + 1] if k >= late else []
    return row + w[max(0, count - late) :]
