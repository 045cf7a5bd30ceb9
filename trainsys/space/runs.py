"""Which stage of the pipeline has which runs of layers.

Under vp a stage has several. In a *loop* the runs go round the stages (Narayanan et al. 2021, arXiv:2104.04473, §2.2);
*folded* they go down the stages and up again, in a V (Qi et al. 2024, arXiv:2405.15362), so that the last run is where
the first one is.
"""

from __future__ import annotations

from trainsys.config import ParallelConfig

FOLDED = frozenset({"zbv", "vhalf", "vmin", "dualpipev"})  # schedules that are made for a V


def is_folded(parallel: ParallelConfig) -> bool:
    """Whether the layers of ``parallel`` lie in a V: as its placement says, by default as its schedule wants it."""
    return parallel.placement == "v" or (parallel.placement == "auto" and parallel.schedule in FOLDED)


def host_of(run: int, count: int, folded: bool) -> int:
    """The one of `count` stages that has `run`."""
    turn, place = divmod(run, count)
    return count - 1 - place if folded and turn % 2 else place


def runs_of(stage: int, count: int, vp: int, folded: bool) -> tuple[int, ...]:
    """The `vp` runs of `stage`, of `count`, in the order of the model."""
    return tuple(run for run in range(count * vp) if host_of(run, count, folded) == stage)
