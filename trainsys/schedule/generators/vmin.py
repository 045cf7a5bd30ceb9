"""V-Min (Qi et al. 2024, arXiv:2405.15362, section 4.2): the fewest activations of a V, (P + 4)//3 microbatches a lane.

The bubble is two thirds of 1F1B's where F, I and W take equally long; else it grows with the microbatches.
"""

from __future__ import annotations

from trainsys.schedule.generators.blocks import repeated
from trainsys.schedule.generators.columns import check_v, schedule_columns
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only V-Min.

    Raises:
        ValueError: if the layers do not lie in a V of two runs per lane.
    """
    check_v("vmin", problem)
    depth = problem.depth
    wait = 2 if depth % 3 == 0 else 0  # so that no two legs meet in a slot
    block = [
        (lane, 2 * depth - 1 - lane, 2 * depth + wait + lane, 4 * depth - 1 + wait - lane) for lane in range(depth)
    ]
    return schedule_columns(
        "vmin", problem, lambda column: repeated(column, block), keeps=(depth + 4) // 3, folded=True
    )
