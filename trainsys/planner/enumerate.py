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

_LEAST_TOKENS = 8192  # of a sequence on a team, in the published training at 131,072 (arXiv:2407.21783, table 4)
SEARCHED = ("dp", "tp", "pp", "cp", "ep", "vp", "zero", "sequence_parallel", "schedule", "recompute")
TAKEN = ("order", "reduction")  # as the config has them
_EVEN: dict[str, Any] = {"stage_layers": (), "stage_replicas": (), "devices": ()}


def check_fixed(config: RunConfig, fixed: Collection[str]) -> None:
    """Whether what is not searched, and what of the searched is `fixed`, can be of any layout. Raises ValueError."""
    for name in _EVEN:
        if name in fixed:
            what = "places are" if name == "devices" else "only even layouts are"
            raise ValueError(f"parallel.{name} cannot be kept: {what} searched; leave it out")
    plain = {key: getattr(ParallelConfig(), key) for key in SEARCHED if key != "cp"}  # that one is always tried
    given = {key: getattr(config.parallel, key) for key in fixed}
    check_names(dataclasses.replace(config.parallel, **_EVEN, **plain))
    check_degrees(dataclasses.replace(config.parallel, **_EVEN, **(plain | given)))


def candidates(
    config: RunConfig, num_ranks: int, fixed: Collection[str] = ()
) -> tuple[list[ParallelConfig], Counter[str]]:
    """All uniform layouts with dp · cp · tp · pp = `num_ranks`, with their variants, in a fixed order.

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
    for cp, dp, tp, pp in _degrees(config, num_ranks):
        grid = dataclasses.replace(
            config.parallel, dp=dp, tp=tp, pp=pp, cp=cp, ep=1, vp=1, sequence_parallel=False, stage_layers=(),
            stage_replicas=(), devices=(),
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


def _degrees(config: RunConfig, num_ranks: int) -> Iterator[tuple[int, int, int, int]]:
    """All (cp, dp, tp, pp) whose product is `num_ranks`, cp among those worth a look."""
    for cp in (d for d in _context_degrees(config) if num_ranks % d == 0):
        teams = num_ranks // cp
        for tp in (d for d in range(1, teams + 1) if teams % d == 0):
            rest = teams // tp
            for pp in (d for d in range(1, rest + 1) if rest % d == 0):
                yield cp, rest // pp, tp, pp


def _context_degrees(config: RunConfig) -> list[int]:
    """Powers of two that leave a team `_LEAST_TOKENS` of a sequence, and what the config names."""
    powers = [1 << i for i in range(max(1, config.batch.seq_len // _LEAST_TOKENS).bit_length())]
    return sorted({*powers, config.parallel.cp})


def _variants(grid: ParallelConfig, model: ModelConfig, vp: int) -> Iterator[ParallelConfig]:
    """Every way to run one grid, with `vp` runs of layers per stage where there are several."""
    teams = grid.dp * grid.cp
    for ep in (d for d in range(1, max(min(teams, model.num_experts), 1) + 1) if teams % d == 0):
        yield from _variants_of(dataclasses.replace(grid, ep=ep), model.num_layers, vp)


def _variants_of(grid: ParallelConfig, num_layers: int, most_vp: int) -> Iterator[ParallelConfig]:
    most = 1 if grid.reduction == "fast" else 3
    for zero in range(most + 1) if grid.dp * grid.cp > 1 else (0,):
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
