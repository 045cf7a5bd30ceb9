"""The layouts that have what is asked for: all of them, or the fastest one, also those that no search looks at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.check import MOST_MICROBATCHES
from trainsys.planner.enumerate import divisors
from trainsys.planner.plan import Plan
from trainsys.planner.predict import predict
from trainsys.planner.ranking import order, with_layout
from trainsys.planner.remedies import illegal_for, peak_gib
from trainsys.planner.search import KEEP, search

GRID = ("dp", "cp", "tp", "pp")
LISTS = ("stage_layers", "stage_replicas")


def fastest(
    config: RunConfig, asked: Mapping[str, Any], num_ranks: int, sizes: Sequence[int], placed: bool
) -> Plan | None:
    """The best layout that has `asked`, keys of ``config.parallel``; None where none fits.

    Args:
        sizes: of microbatches; more than one: any is searched.
        placed: only those whose ranks are not numbered as usual.
    """
    plain = {key: value for key, value in asked.items() if key not in LISTS}
    if "stage_replicas" not in asked:
        even = replace(config, parallel=replace(config.parallel, stage_layers=()))
        try:
            keep = 1 if plain == asked and not placed else KEEP
            found = search(even, num_ranks, list(plain), keep=keep, any_microbatch=len(sizes) > 1).plans
        except ValueError:  # none of them fits, or none is among those searched
            found = ()
        plans = [plan for plan in found if plan.parallel.devices or not placed]
        if "stage_layers" in asked:
            own = [(replace(plan.parallel, stage_layers=asked["stage_layers"]), plan.microbatch_size) for plan in plans]
            plans = _predicted(config, own)
        if plans or "stage_layers" not in asked or placed:
            return min(plans, key=order, default=None)
    every = [(parallel, size) for size in sizes for parallel in completions(config, asked, num_ranks)]
    return min(_predicted(config, every), key=order, default=None)


def _predicted(config: RunConfig, layouts: Sequence[tuple[ParallelConfig, int]]) -> list[Plan]:
    """Those of them that are legal and fit."""
    plans = []
    for parallel, size in dict.fromkeys(layouts):
        own = with_layout(config, parallel, size)
        if not illegal_for(own, parallel) and peak_gib(own, parallel) <= _most_gib(config):
            plan = predict(own, parallel)
            plans += [plan] if plan.peak_gib <= plan.limit_gib else []
    return plans


def _most_gib(config: RunConfig) -> float:
    """Of the largest device."""
    devices = [config.cluster.device, *(other.device for other in config.cluster.other_devices)]
    limits: list[float] = [device.memory_gib for device in devices]
    return max(limits)


def sizes_of(config: RunConfig, any_microbatch: bool) -> tuple[int, ...]:
    """The config's microbatch size, or all powers of two (the smallest possible one where none is) up to the batch."""
    whole = config.batch.global_size
    if not any_microbatch or whole < 1:
        return (config.batch.microbatch_size,)
    able = [d for d in divisors(whole) if whole // d <= MOST_MICROBATCHES]
    return tuple(d for d in able if d & (d - 1) == 0) or tuple(able[:1])


def completions(config: RunConfig, asked: Mapping[str, Any], num_ranks: int) -> Iterator[ParallelConfig]:
    """Layouts that have `asked`, plain ones first: degrees not named are 1 but for dp, or as dp leaves them."""
    for grid in _grids(asked, num_ranks):
        degrees = dict(zip(GRID, grid, strict=True))
        replicas = degrees["dp"] * degrees["cp"]
        choices = {
            "zero": range(1 if replicas == 1 else 2 if config.parallel.reduction == "fast" else 4),
            "recompute": ("none", "full"),
            "offload": ("none", "activations"),
            "sequence_parallel": (False, True) if degrees["tp"] > 1 else (False,),
            "ep": [n for n in range(1, max(config.model.num_experts, 1) + 1) if replicas % n == 0],
        }  # fmt: skip
        keys = {key: (asked[key],) if key in asked else values for key, values in choices.items()}
        for values in product(*keys.values()):
            yield completed(config.parallel, {**asked, **degrees, **dict(zip(keys, values, strict=True))})


def _grids(asked: Mapping[str, Any], num_ranks: int) -> list[tuple[int, ...]]:
    """dp, cp, tp and pp; replicas that differ by stage may leave ranks idle."""
    if "stage_replicas" in asked:
        replicas, cp = asked["stage_replicas"], asked.get("cp", 1)
        most = num_ranks // (sum(replicas) * cp)
        tps = [tp for tp in _divisors(num_ranks, asked.get("tp")) if tp <= most]
        return [(max(replicas), cp, tp, len(replicas)) for tp in tps]
    every = product(*(_divisors(num_ranks, asked.get(axis)) for axis in GRID))
    grids = [grid for grid in every if prod(grid) == num_ranks and (grid[1] == 1 or "cp" in asked)]
    return sorted(grids, key=lambda g: -g[0])


def completed(parallel: ParallelConfig, asked: Mapping[str, Any]) -> ParallelConfig:
    """`asked`, with 1f1b and one run of layers where it does not say otherwise."""
    vp = asked.get("vp", 2 if asked.get("schedule") == "interleaved" else 1)
    schedule = asked.get("schedule", "interleaved" if vp > 1 else "1f1b")
    plain = ParallelConfig(order=parallel.order, reduction=parallel.reduction)
    return replace(plain, **{**asked, "vp": vp, "schedule": schedule})


def _divisors(number: int, given: int | None) -> list[int]:
    return divisors(number) if given is None else [given]
