"""The best layouts: every legal one is bounded, and those are predicted that the bound does not rule out.

The ranking is that of predicting all of them: a layout is left out only where its least step time ranks it behind as
many predicted ones as are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from time import perf_counter

import numpy as np

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import num_params, resolve
from trainsys.planner.bounds import outlook
from trainsys.planner.check import MOST_MICROBATCHES, check_batch
from trainsys.planner.device import Rate, rate
from trainsys.planner.device_names import check_device_names
from trainsys.planner.devices import stage_by_stage
from trainsys.planner.enumerate import Block, blocks, check_fixed, check_size, divisors
from trainsys.planner.nothing import nothing_fits, nothing_with
from trainsys.planner.place_plans import place_plans
from trainsys.planner.plan import Miss, Plan, PlanReport
from trainsys.planner.predict import worst_stage
from trainsys.planner.ranking import Array, Ranking, Survey, not_dominated, order, with_layout
from trainsys.planner.stages import Stages, notation
from trainsys.planner.uneven import evened, most_promising
from trainsys.space.build import ORDER, axis_order

KEEP = 20  # layouts of a report
_MIXED = 48  # grids with a pipeline whose layers are also split by what devices can do, where these differ


def search(
    config: RunConfig,
    num_ranks: int | None = None,
    fixed: Collection[str] = (),
    keep: int | None = KEEP,
    any_microbatch: bool = False,
    halves: int = 0,
) -> PlanReport:
    """Rank the layouts of ``config`` on `num_ranks` ranks (default: the whole cluster) by predicted step time.

    Args:
        fixed: keys of ``config.parallel``, of those in `SEARCHED`, that stay as they are.
        keep: how many to report, best first; None for all that fit, each of which is then simulated.
        any_microbatch: search the microbatch size too; otherwise it is ``config.batch``'s.
        halves: for the Pareto set, also look at a half of the ranks, a quarter, and so on, so many times.

    Raises:
        ValueError: for a batch that the model cannot take, or when no layout is legal and fits: names the nearest one
            and what it lacks.
    """
    start = perf_counter()
    if any_microbatch and config.batch.global_size > 0:
        config = with_layout(config, config.parallel, _least_microbatch(config.batch.global_size))
    check_batch(config)
    check_fixed(config, fixed)
    check_device_names(config)
    topology = Topology.from_config(config.cluster, num_ranks)
    check_size(config, topology.num_ranks)
    measured = rate(config.cluster, topology.num_ranks)
    space = _survey(config, topology, measured, fixed, any_microbatch)
    if fixed and not space.legal:
        raise ValueError(nothing_with(config, topology.num_ranks, fixed, space.rejected))
    ranking = Ranking(config, measured, space)
    best = ranking.best(len(space.least_s) if keep is None else keep)
    front = ranking.front()
    best = sorted([*best, *_uneven(config, topology, measured, ranking, best)], key=order)[:keep]
    if not best:
        canonical = config.parallel.reduction == "canonical"
        raise ValueError(nothing_fits(topology, space.rejected, space.nearest, canonical))
    for number in range(1, min(halves, topology.num_ranks.bit_length() - 1) + 1):  # as far as there is a rank left
        front += _smaller(config, topology.num_ranks >> number, fixed, any_microbatch)
    plans = [ranking.in_full(plan) for plan in best]
    if topology.links is not None:
        plans = sorted(place_plans(config, plans, measured), key=order)
    pareto = tuple(ranking.in_full(plan) for plan in not_dominated([*best, *front]))
    return PlanReport(
        cluster=topology.describe(),
        device=measured.source,
        model=describe_model(config),
        num_ranks=topology.num_ranks,
        plans=tuple(plans),
        rejected=space.rejected,
        nearest_miss=space.nearest,
        search_s=perf_counter() - start,
        pareto=pareto,
        legal=space.legal,
        pruned=len(space.least_s) - len(ranking.predicted),
        simulated=len(ranking.predicted),
    )


def _uneven(
    config: RunConfig, topology: Topology, measured: Rate, ranking: Ranking, best: list[Plan]
) -> Iterator[Plan]:
    """Other splits of the layers: of the best layouts, and where devices differ of what promises most."""
    plans = best[:KEEP]
    if topology.others:
        more = most_promising(config, ranking.of_each_pipeline(4 * _MIXED), measured, _MIXED)
        plans += (plan for plan in more if plan not in plans)
    return evened(config, plans, measured)


def _least_microbatch(global_size: int) -> int:
    """The smallest microbatch that the batch can be cut into."""
    return next((d for d in divisors(global_size) if global_size // d <= MOST_MICROBATCHES), 1)


def _survey(
    config: RunConfig, topology: Topology, measured: Rate, fixed: Collection[str], any_microbatch: bool
) -> Survey:
    """Bound every legal layout; the nearest of those over memory is told."""
    space = Survey()
    found: list[tuple[Array, ...]] = []
    misses, nearest = 0, (float("inf"), (config.parallel, 0))
    for block, reason in blocks(config, topology.num_ranks, fixed, any_microbatch):
        if reason:
            space.rejected[reason] += block.size
            continue
        for placed, where in _places(block, topology):
            view = outlook(config, placed, where, measured)
            asked = _asked_for(placed, view.peak_gib <= view.limit_gib)
            fits = asked & (view.peak_gib <= view.limit_gib)
            over = asked & ~fits
            space.legal += int(asked.sum())
            misses += int(over.sum())
            needs = np.where(over, view.peak_gib - view.limit_gib, np.inf)
            if needs.min() < nearest[0]:
                nearest = float(needs.min()), placed.layout(int(needs.argmin()))
            if over.any() and not fits.any():
                space.tight.append(placed.layout(int(needs.argmin())))
            numbers = np.flatnonzero(fits)
            found.append(
                (
                    np.full(len(numbers), len(space.blocks), np.int32),
                    numbers.astype(np.int32),
                    view.least_s.ravel()[numbers],
                    view.peak_gib.ravel()[numbers],
                )
            )
            space.blocks.append(placed)
    if found:
        space.block, space.number, space.least_s, space.peak_gib = map(np.concatenate, zip(*found, strict=True))
    if misses:
        space.nearest = _miss(config, *nearest[1], any_microbatch)
        over_gib = f"{space.nearest.over_gib:.3g} GiB over the {space.nearest.limit_gib:g} GiB"
        space.rejected[f"over memory: nearest is {space.nearest.layout}, {over_gib}"] = misses
    return space


def _places(block: Block, topology: Topology) -> Iterator[tuple[Block, Topology]]:
    """`block` as ranks are numbered and, where devices differ, with its stages of one type each."""
    yield block, topology
    grid = block.grid
    if topology.others and grid.pp > 1 and axis_order(grid) == ORDER:
        devices = stage_by_stage(topology, grid.dp, grid.pp, grid.cp * grid.tp)
        if devices == tuple(range(topology.num_ranks)):
            return
        placed = dataclasses.replace(block, grid=dataclasses.replace(grid, devices=devices))
        yield placed, topology.placed(devices)


def _asked_for(block: Block, fits: Array) -> Array:
    """Which layouts count: those that offload do where the same without does not fit."""
    asked = np.ones(block.shape, bool)
    if len(block.offload) > 1:
        asked[:, :, :, :, 1] = ~fits[:, :, :, :, 0]
    return asked


def _miss(config: RunConfig, parallel: ParallelConfig, microbatch_size: int, any_microbatch: bool) -> Miss:
    config = with_layout(config, parallel, microbatch_size)
    memory, limit_gib = worst_stage(config, Stages.of(config.model, parallel))
    name = notation(parallel) + (f" mb{microbatch_size}" if any_microbatch else "")
    return Miss(name, memory.total, limit_gib, memory)


def _smaller(config: RunConfig, num_ranks: int, fixed: Collection[str], any_microbatch: bool) -> list[Plan]:
    """The Pareto set on `num_ranks` ranks; nothing where no layout fits."""
    try:
        return list(search(config, num_ranks, fixed, KEEP, any_microbatch).pareto)
    except ValueError:
        return []


def describe_model(config: RunConfig) -> str:
    """One line: ``llama 8.03 B parameters, 32 layers × 4096, bfloat16``."""
    model, count = resolve(config.model), num_params(config.model)
    scale, unit = next((s, u) for s, u in ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")) if count >= s)
    size = f"{count / scale:.3g}{unit}"
    return f"{model.family} {size} parameters, {model.num_layers} layers × {model.dim}, {config.train.dtype}"
