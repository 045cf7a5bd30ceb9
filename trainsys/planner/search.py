"""The best layout: score every legal one that fits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from math import log
from time import perf_counter

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import num_params, resolve
from trainsys.planner.check import check_batch
from trainsys.planner.device import rate
from trainsys.planner.enumerate import candidates, check_fixed
from trainsys.planner.place_plans import place_plans
from trainsys.planner.plan import Miss, Plan, PlanReport
from trainsys.planner.predict import predict, worst_memory
from trainsys.planner.stages import Stages, notation

_EQUAL = 0.002  # step times this close (relative) count as a tie; memory within 5 %


def search(config: RunConfig, num_ranks: int | None = None, fixed: Collection[str] = ()) -> PlanReport:
    """Rank all layouts of ``config`` on `num_ranks` ranks (default: the whole cluster) by predicted step time.

    Args:
        fixed: keys of ``config.parallel``, of those in `SEARCHED`, that stay as they are.

    Raises:
        ValueError: for a batch that the model cannot take, or when no layout is legal and fits: names the nearest one
            and what it lacks.
    """
    start = perf_counter()
    check_batch(config)
    check_fixed(config, fixed)
    topology = Topology.from_config(config.cluster, num_ranks)
    measured = rate(config.cluster, topology.num_ranks)
    legal, rejected = candidates(config, topology.num_ranks, fixed)
    if fixed and not legal:
        raise ValueError(_nothing_with(config, topology.num_ranks, fixed, rejected))
    fitting, misses = _split_by_memory(config, legal)
    nearest = min(misses, key=lambda miss: miss.over_gib, default=None)
    if nearest is not None:
        over = f"nearest is {nearest.layout}, {nearest.over_gib:.3g} GiB over the {nearest.limit_gib:g} GiB"
        rejected[f"over memory: {over}"] = len(misses)
    if not fitting:
        raise ValueError(_nothing(topology, rejected, nearest, config.parallel.reduction == "canonical"))
    plans = [predict(config, parallel, measured) for parallel in fitting]
    plans = sorted((_memory_bound(plan, misses) for plan in plans), key=_order)
    if not topology.regular:
        plans = sorted(place_plans(config, plans, measured), key=_order)
    return PlanReport(
        cluster=topology.describe(),
        device=measured.source,
        model=describe_model(config),
        num_ranks=topology.num_ranks,
        plans=tuple(plans),
        rejected=rejected,
        nearest_miss=nearest,
        search_s=perf_counter() - start,
    )


def describe_model(config: RunConfig) -> str:
    """One line: ``llama 8.03 B parameters, 32 layers × 4096, bfloat16``."""
    model, count = resolve(config.model), num_params(config.model)
    scale, unit = next((s, u) for s, u in ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")) if count >= s)
    size = f"{count / scale:.3g}{unit}"
    return f"{model.family} {size} parameters, {model.num_layers} layers × {model.dim}, {config.train.dtype}"


def _split_by_memory(config: RunConfig, legal: list[ParallelConfig]) -> tuple[list[ParallelConfig], list[Miss]]:
    """The layouts that fit, and those that do not."""
    limit = config.cluster.device.memory_gib
    fitting, misses = [], []
    for parallel in legal:
        memory = worst_memory(dataclasses.replace(config, parallel=parallel), Stages.of(config.model, parallel))
        if memory.total <= limit:
            fitting.append(parallel)
        else:
            misses.append(Miss(notation(parallel), memory.total, limit, memory))
    return fitting, misses


def _memory_bound(plan: Plan, misses: list[Miss]) -> Plan:
    """Memory bounds a layout that recomputes because it would not fit without."""
    if plan.parallel.recompute == "none":
        return plan
    without = notation(dataclasses.replace(plan.parallel, recompute="none"))
    return dataclasses.replace(plan, bound_by="memory") if any(m.layout == without for m in misses) else plan


def _order(plan: Plan) -> tuple[object, ...]:
    """Faster first; among equals no recomputation, less memory, then fewer moving parts."""
    parallel = plan.parallel
    return (
        round(log(plan.step_s) / _EQUAL),
        parallel.recompute == "full",
        round(log(plan.peak_gib) / 0.05),
        parallel.zero,
        parallel.sequence_parallel,
        parallel.tp,
        parallel.cp,
        parallel.pp,
        plan.layout,
    )


def _nothing_with(config: RunConfig, num_ranks: int, fixed: Collection[str], rejected: Counter[str]) -> str:
    """That no layout has what is fixed, and which one comes nearest."""
    wanted = {key: getattr(config.parallel, key) for key in fixed}

    def far(parallel: ParallelConfig) -> tuple[float, float]:
        """How many keys differ, and by what factor in all."""
        pairs = [(value, getattr(parallel, key)) for key, value in wanted.items() if getattr(parallel, key) != value]
        factors = [abs(log((a + 1) / (b + 1))) for a, b in pairs if isinstance(a, int) and isinstance(b, int)]
        return len(pairs), sum(factors)

    legal, every = candidates(config, num_ranks)
    said = "no legal layout on {} rank{} has {}".format(
        num_ranks, "s"[: num_ranks != 1], " ".join(f"parallel.{key}={_text(value)}" for key, value in wanted.items())
    )
    said += "".join(f": {reason}" for reason, _ in rejected.most_common(1))
    if not legal:
        return said + "".join(f"; nor any other: {reason}" for reason, _ in every.most_common(1) if not rejected)
    nearest = min(legal, key=far)
    other = [key for key, value in wanted.items() if getattr(nearest, key) != value]
    knobs = " ".join(f"parallel.{key}={_text(getattr(nearest, key))}" for key in other)
    return f"{said}; nearest is {notation(nearest)}, with {knobs}"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _nothing(topology: Topology, rejected: Counter[str], nearest: Miss | None, canonical: bool) -> str:
    """Why there is no layout at all, in one line."""
    ranks = f"{topology.num_ranks} rank{'s'[: topology.num_ranks != 1]}"
    if nearest is None:
        reasons = "; ".join(f"{reason} ({count})" for reason, count in rejected.most_common(3))
        return f"no legal layout on {ranks}: {reasons}"
    parts = dataclasses.asdict(nearest.memory)
    largest = max(parts, key=lambda name: parts[name])
    return (
        f"no layout fits on {ranks}: nearest is {nearest.layout}, which needs {nearest.peak_gib:.3g} GiB per rank and "
        f"misses cluster.device.memory_gib={nearest.limit_gib:g} by {nearest.over_gib:.3g} GiB "
        f"({largest} {parts[largest]:.3g} GiB); use more ranks"
        + (" or lower batch.microbatch_size" if largest in ("activations", "logits") else "")
        + (" or set parallel.reduction=fast" if largest == "gradients" and canonical else "")
    )
