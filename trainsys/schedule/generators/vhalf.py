"""V-Half (Qi et al. 2024, arXiv:2405.15362, section 4.2): half of 1F1B's activations, (P + 2)//2 microbatches per lane,
at half of its bubble where F, I and W take equally long.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.schedule.generators.blocks import PERIOD, repeated
from trainsys.schedule.generators.columns import check_v, schedule_columns
from trainsys.schedule.problem import BARRIERS, Problem
from trainsys.schedule.schedule import Schedule

_BARRIER = 2  # slots for all lanes to come to their S or T, and do it


def generate(problem: Problem) -> Schedule:
    """Compute-only V-Half.

    Raises:
        ValueError: if the layers do not lie in a V of two runs per lane.
    """
    check_v("vhalf", problem)
    depth, barriers = problem.depth, BARRIERS[problem.vocabulary]
    turn = _BARRIER * barriers
    block = next(block for wait in range(turn, turn + PERIOD) if _apart(block := _block(depth, wait)))
    return schedule_columns(
        "vhalf", problem, lambda column: repeated(column, block, turn), keeps=(depth + 2) // 2 + barriers, folded=True
    )


def _block(depth: int, wait: int) -> list[tuple[int, int, int, int]]:
    """By lane, when F goes down the V and up, and I down and up; between the turns so many slots."""
    return [
        (2 * lane, 3 * depth - 2 - lane, 3 * depth - 1 + wait + 2 * lane, 6 * depth - 2 + wait - lane)
        for lane in range(depth)
    ]


def _apart(block: Sequence[Sequence[int]]) -> bool:
    """No two legs of a lane meet in a slot."""
    return all(len({slot % PERIOD for slot in legs}) == len(legs) for legs in block)
