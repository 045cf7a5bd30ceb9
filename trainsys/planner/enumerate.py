"""Every layout of a model on n ranks: the legal ones, and why the others are not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

from trainsys.config import ModelConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import resolve
from trainsys.planner.check import check_degrees, check_layout, check_names
from trainsys.schedule import GENERATORS

SEARCHED = ("dp", "tp", "pp", "ep", "vp", "zero", "sequence_parallel", "schedule", "recompute")
TAKEN = ("cp", "order", "reduction")  # as the config has them
_EVEN: dict[str, Any] = {"stage_layers": (), "stage_replicas": ()}


def check_fixed(config: RunConfig, fixed: Collection[str]) -> None:
    """Whether what is not searched, and what of the searched is `fixed`, can be of any layout. Raises ValueError."""
    for name in _EVEN:
        if name in fixed:
            raise ValueError(f"parallel.{name} cannot be kept: only even layouts are searched; leave it out")
    plain = {key: getattr(ParallelConfig(), key) for key in SEARCHED}
    given = {key: getattr(config.parallel, key) for key in fixed}
    check_names(dataclasses.replace(config.parallel, **_EVEN, **plain))
    check_degrees(dataclasses.replace(config.parallel, **_EVEN, **(plain | given)))


def candidates(
    config: RunConfig, num_ranks: int, fixed: Collection[str] = ()
) -> tuple[list[ParallelConfig], Counter[str]]:
    """All uniform layouts with dp · tp · pp = `num_ranks`, with their variants, in a fixed order.

    The microbatch size is the config's: numbers must not depend on the layout. Layouts that are the same thing under
    two names (a schedule without a pipeline, ZeRO with one replica, sequence parallelism without tp) appear once.

    Args:
        fixed: those of `SEARCHED` that must be as in the config.

    Returns:
        the legal layouts, and how many were illegal by reason.
    """
    given = {key: getattr(config.parallel, key) for key in fixed}
    legal: list[ParallelConfig] = []
    rejected: Counter[str] = Counter()
    for dp, tp, pp in _degrees(num_ranks):
        grid = dataclasses.replace(
            config.parallel, dp=dp, tp=tp, pp=pp, ep=1, vp=1, sequence_parallel=False, stage_layers=(),
            stage_replicas=(),
        )  # fmt: skip
        reason = _reason(config, dataclasses.replace(grid, zero=0, schedule=next(iter(GENERATORS)), recompute="none"))
        for parallel in _variants(grid, resolve(config.model), given.get("vp", 2)):
            if any(getattr(parallel, key) != value for key, value in given.items()):
                continue
            special = parallel.sequence_parallel or parallel.vp > 1
            why = reason or (_reason(config, parallel) if special else "")
            if why:
                rejected[why] += 1
            else:
                legal.append(parallel)
    return legal, rejected


def _degrees(num_ranks: int) -> Iterator[tuple[int, int, int]]:
    """All (dp, tp, pp) whose product is `num_ranks`."""
    for tp in (d for d in range(1, num_ranks + 1) if num_ranks % d == 0):
        rest = num_ranks // tp
        for pp in (d for d in range(1, rest + 1) if rest % d == 0):
            yield rest // pp, tp, pp


def _variants(grid: ParallelConfig, model: ModelConfig, vp: int) -> Iterator[ParallelConfig]:
    """Every way to run one grid, with `vp` runs of layers per stage where there are several."""
    for ep in (d for d in range(1, max(min(grid.dp, model.num_experts), 1) + 1) if grid.dp % d == 0):
        yield from _variants_of(dataclasses.replace(grid, ep=ep), model.num_layers, vp)


def _variants_of(grid: ParallelConfig, num_layers: int, most_vp: int) -> Iterator[ParallelConfig]:
    most = 1 if grid.reduction == "fast" else 3
    for zero in range(most + 1) if grid.dp > 1 else (0,):
        for sequence_parallel in (False, True) if grid.tp > 1 else (False,):
            for schedule, vp in _schedules(grid.pp, num_layers, most_vp):
                for recompute in ("none", "full"):
                    yield dataclasses.replace(
                        grid,
                        zero=zero,
                        sequence_parallel=sequence_parallel,
                        schedule=schedule,
                        vp=vp,
                        recompute=recompute,
                    )


def _schedules(pp: int, num_layers: int, vp: int) -> Iterator[tuple[str, int]]:
    """Every schedule with its runs of layers per stage: `vp` where there are several, more cost time to search."""
    for name in GENERATORS if pp > 1 else ("1f1b",):
        if name != "interleaved":
            yield name, 1
        elif vp > 1 and vp * pp <= num_layers:
            yield name, vp


def _reason(config: RunConfig, parallel: ParallelConfig) -> str:
    """Why `parallel` is illegal, without the advice; empty when it is legal."""
    try:
        check_layout(dataclasses.replace(config, parallel=parallel))
    except ValueError as error:
        return str(error).split(";")[0]
    return ""
