"""V-Half (Qi et al. 2024, arXiv:2405.15362, section 4.2): half of 1F1B's activations, (P + 2)//2 microbatches per lane,
at half of its bubble where F, I and W take equally long.
"""

from __future__ import annotations

from trainsys.schedule.generators.blocks import repeated
from trainsys.schedule.generators.columns import check_v, schedule_columns
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only V-Half.

    Raises:
        ValueError: if the layers do not lie in a V of two runs per lane.
    """
    check_v("vhalf", problem)
    depth = problem.depth
    wait = 3 if depth % 2 == 0 else 0  # so that no two legs meet in a slot
    block = [
        (2 * lane, 3 * depth - 2 - lane, 3 * depth - 1 + wait + 2 * lane, 6 * depth - 2 + wait - lane)
        for lane in range(depth)
    ]
    return schedule_columns(
        "vhalf", problem, lambda column: repeated(column, block), keeps=(depth + 2) // 2, folded=True
    )
