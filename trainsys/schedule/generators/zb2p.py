"""ZB-2P, the automatic schedule of Qi et al. 2023 (arXiv:2401.10241, section 3): as many activations as the cap allows, from
measured costs.

With 2P microbatches per lane, where 1F1B keeps P on its first, the bubble is no more than the start's. Lanes first take
as many forwards as fit before the first I is back; then, microbatch by microbatch, each lane takes one F unless that
would delay the next lane's I, and one I, and puts W where it would wait. Three choices are open, and all eight
combinations are tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import floor

from trainsys.schedule.generators import zb1p
from trainsys.schedule.generators.clock import Clock, Stuck
from trainsys.schedule.generators.columns import Column, Rows, schedule_columns
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule


def generate(problem: Problem) -> Schedule:
    """Compute-only ZB-2P; its cap is the one given, or 2P microbatches.

    Raises:
        ValueError: for vp > 1.
    """
    if problem.vp > 1:
        raise ValueError(
            f"parallel.schedule=zb2p has one run of layers per stage, not parallel.vp={problem.vp}; set parallel.vp=1, "
            "or parallel.schedule=zb1p"
        )
    most = floor(problem.cap) or 2 * problem.depth
    return schedule_columns("zb2p", problem, lambda column: rule(column, most), keeps=most)


def rule(column: Column, most: int) -> Rows:
    """The shortest of the eight orders, and of ZB-1P's where that fits."""
    best: Clock | None = None
    if most >= min(column.depth, column.microbatches):
        best = _replayed(column, zb1p.rule(column))
    for bits in product((True, False), repeat=3):
        run = _Automatic(column, most, _Choices(*bits))
        try:
            run.decide()
        except Stuck:
            continue
        if best is None or run.step_s < best.step_s - 1e-12:
            best = run
    assert best is not None, f"{column.depth} lanes with {most} activations have no order"
    return best.rows
