"""The best layouts: every legal one is bounded, and those are predicted that the bound does not rule out.

The ranking is that of predicting all of them: a layout is left out only where its least step time ranks it behind as
many predicted ones as are kept.
"""

from __future__ import annotations

import dataclasses
from bisect import insort
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import log
from time import perf_counter
from typing import Any

import numpy as np

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import num_params, resolve
from trainsys.planner.bounds import outlook
from trainsys.planner.check import check_batch
from trainsys.planner.device import Rate, rate
from trainsys.planner.enumerate import Block, blocks, candidates, check_fixed, check_size
from trainsys.planner.plan import Miss, Plan, PlanReport
from trainsys.planner.predict import least_step_s, predict, worst_memory
from trainsys.planner.stages import Stages, notation
from trainsys.planner.uneven import evened

KEEP = 20  # layouts of a report
_EQUAL = 0.002  # step times this close (relative) count as a tie; memory within 5 %
_NEAR = 0.05
Array = np.ndarray[Any, Any]


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
    check_batch(config)
    check_fixed(config, fixed)
    topology = Topology.from_config(config.cluster, num_ranks)
    check_size(config, topology.num_ranks)
    measured = rate(config.cluster, topology.num_ranks)
    space = _survey(config, topology, measured, fixed, any_microbatch)
    if fixed and not space.legal:
        raise ValueError(_nothing_with(config, topology.num_ranks, fixed, space.rejected))
    if not len(space.least_s):
        raise ValueError(_nothing(topology, space.rejected, space.nearest, config.parallel.reduction == "canonical"))
    ranking = _Ranking(config, measured, space)
    best = ranking.best(len(space.least_s) if keep is None else keep)
    front = ranking.front()
    best = sorted([*best, *evened(config, best[:KEEP], measured)], key=order)[:keep]
    for number in range(1, halves + 1):
        front += _smaller(config, topology.num_ranks >> number, fixed, any_microbatch)
    return PlanReport(
        cluster=topology.describe(),
        device=measured.source,
        model=describe_model(config),
        num_ranks=topology.num_ranks,
        plans=tuple(ranking.told(plan) for plan in best),
        rejected=space.rejected,
        nearest_miss=space.nearest,
        search_s=perf_counter() - start,
        pareto=tuple(ranking.told(plan) for plan in not_dominated([*best, *front])),
        legal=space.legal,
        pruned=len(space.least_s) - len(ranking.predicted),
        simulated=len(ranking.predicted),
    )


@dataclass
class _Space:
    """All legal layouts that fit: number `number[i]` of block ``blocks[block[i]]``, and why the others do not."""

    blocks: list[Block] = field(default_factory=list)
    block: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    number: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    least_s: Array = field(default_factory=lambda: np.zeros(0))
    peak_gib: Array = field(default_factory=lambda: np.zeros(0))
    rejected: Counter[str] = field(default_factory=Counter)
    legal: int = 0
    nearest: Miss | None = None

    def layout(self, index: int) -> tuple[ParallelConfig, int]:
        block: Block = self.blocks[self.block[index]]
        return block.layout(int(self.number[index]))


def _survey(
    config: RunConfig, topology: Topology, measured: Rate, fixed: Collection[str], any_microbatch: bool
) -> _Space:
    """Bound every legal layout; the nearest of those over memory is told."""
    space, limit = _Space(), config.cluster.device.memory_gib
    found: list[tuple[Array, ...]] = []
    misses, nearest = 0, (float("inf"), (config.parallel, 0))
    for block, reason in blocks(config, topology.num_ranks, fixed, any_microbatch):
        if reason:
            space.rejected[reason] += block.size
            continue
        view = outlook(config, block, topology, measured)
        asked = _asked_for(block, view.peak_gib <= limit)
        fits = asked & (view.peak_gib <= limit)
        over = asked & ~fits
        space.legal += int(asked.sum())
        misses += int(over.sum())
        peaks = np.where(over, view.peak_gib, np.inf)
        if peaks.min() < nearest[0]:
            nearest = float(peaks.min()), block.layout(int(peaks.argmin()))
        numbers = np.flatnonzero(fits)
        found.append(
            (
                np.full(len(numbers), len(space.blocks), np.int32),
                numbers.astype(np.int32),
                view.least_s.ravel()[numbers],
                view.peak_gib.ravel()[numbers],
            )
        )
        space.blocks.append(block)
    if found:
        space.block, space.number, space.least_s, space.peak_gib = map(np.concatenate, zip(*found, strict=True))
    if misses:
        space.nearest = _miss(config, *nearest[1])
        over_gib = f"{space.nearest.over_gib:.3g} GiB over the {limit:g} GiB"
        space.rejected[f"over memory: nearest is {space.nearest.layout}, {over_gib}"] = misses
    return space


def _asked_for(block: Block, fits: Array) -> Array:
    """Which layouts count: those that offload do where the same without does not fit."""
    asked = np.ones(block.shape, bool)
    if len(block.offload) > 1:
        asked[:, :, :, :, 1] = ~fits[:, :, :, :, 0]
    return asked


def _miss(config: RunConfig, parallel: ParallelConfig, microbatch_size: int) -> Miss:
    config = with_layout(config, parallel, microbatch_size)
    memory = worst_memory(config, Stages.of(config.model, parallel))
    return Miss(notation(parallel), memory.total, config.cluster.device.memory_gib, memory)


def with_layout(config: RunConfig, parallel: ParallelConfig, microbatch_size: int) -> RunConfig:
    """`config` with another layout and microbatch size."""
    batch = dataclasses.replace(config.batch, microbatch_size=microbatch_size)
    return dataclasses.replace(config, parallel=parallel, batch=batch)


class _Ranking:
    """Predicts layouts of a space as they are asked for, once each."""

    def __init__(self, config: RunConfig, measured: Rate, space: _Space) -> None:
        self.config, self.measured, self.space = config, measured, space
        self.by_bound = np.argsort(space.least_s, kind="stable")
        self.predicted: dict[int, Plan] = {}
        self.closer: dict[int, float] = {}

    def best(self, keep: int) -> list[Plan]:
        """The `keep` best layouts, in order."""
        best: list[tuple[tuple[object, ...], Plan]] = []
        for index in map(int, self.by_bound):
            if len(best) >= keep:
                worst = best[-1][0]
                if _bucket(self.space.least_s[index]) > worst[0]:  # type: ignore[operator]
                    break
                parallel, _ = self.space.layout(index)
                if _rank(self.space.least_s[index], self.space.peak_gib[index], parallel) > worst[:-2]:
                    continue
                if _rank(self.least(index), self.space.peak_gib[index], parallel) > worst[:-2]:
                    continue
            plan = self.plan(index)
            insort(best, (order(plan), plan), key=lambda entry: entry[0])
            del best[keep:]
        return [plan for _, plan in best]

    def front(self) -> list[Plan]:
        """Layouts such that none is both faster and, by more than 5 %, smaller than all of them."""
        space, left = self.space, self.by_bound
        while len(left := left[~self._beaten(left)]):
            index = int(left[0])
            if self.least(index) > space.least_s[index]:
                space.least_s[index] = self.least(index)
                if self._beaten(left[:1])[0]:
                    continue
            self.plan(index)
        return not_dominated(self.predicted.values())

    def _beaten(self, which: Array) -> Array:
        """Which layouts a predicted one is faster than, and hardly larger."""
        plans = sorted(self.predicted.values(), key=lambda plan: plan.peak_gib)
        peaks = np.array([plan.peak_gib for plan in plans])
        steps = np.minimum.accumulate(np.array([np.inf, *(plan.step_s for plan in plans)]))
        at = np.searchsorted(peaks, self.space.peak_gib[which] * (1 + _NEAR), side="right")
        beaten: Array = steps[at] <= self.space.least_s[which] * (1 + 1e-9)
        done = np.isin(which, list(self.predicted))
        return beaten | done

    def least(self, index: int) -> float:
        """A closer bound of one layout."""
        if index not in self.closer:
            parallel, size = self.space.layout(index)
            self.closer[index] = least_step_s(with_layout(self.config, parallel, size), self.measured)
        return self.closer[index]

    def plan(self, index: int) -> Plan:
        if index not in self.predicted:
            parallel, size = self.space.layout(index)
            config = with_layout(self.config, parallel, size)
            self.predicted[index] = predict(config, parallel, self.measured, whole=False)
        return self.predicted[index]

    def told(self, plan: Plan) -> Plan:
        """`plan` in full, for the report."""
        if plan.parallel.dp * plan.parallel.tp * plan.parallel.pp * plan.parallel.cp != self.space_ranks:
            return plan
        config = with_layout(self.config, plan.parallel, plan.microbatch_size)
        return _memory_bound(config, predict(config, plan.parallel, self.measured))

    @property
    def space_ranks(self) -> int:
        grid = self.space.blocks[0].grid
        return grid.dp * grid.tp * grid.pp * grid.cp


def _smaller(config: RunConfig, num_ranks: int, fixed: Collection[str], any_microbatch: bool) -> list[Plan]:
    """The Pareto set on `num_ranks` ranks; nothing where no layout fits."""
    if num_ranks < 1:
        return []
    try:
        return list(search(config, num_ranks, fixed, KEEP, any_microbatch).pareto)
    except ValueError:
        return []


def not_dominated(plans: Collection[Plan]) -> list[Plan]:
    """Of `plans` those that no other matches in time, memory and ranks; fastest first."""
    front: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.step_s, plan.peak_gib, plan.num_ranks)):
        if not any(other.peak_gib <= plan.peak_gib and other.num_ranks <= plan.num_ranks for other in front):
            front.append(plan)
    return front


def describe_model(config: RunConfig) -> str:
    """One line: ``llama 8.03 B parameters, 32 layers × 4096, bfloat16``."""
    model, count = resolve(config.model), num_params(config.model)
    scale, unit = next((s, u) for s, u in ((1e9, " B"), (1e6, " M"), (1e3, " k"), (1, "")) if count >= s)
    size = f"{count / scale:.3g}{unit}"
    return f"{model.family} {size} parameters, {model.num_layers} layers × {model.dim}, {config.train.dtype}"


def _memory_bound(config: RunConfig, plan: Plan) -> Plan:
    """Memory bounds a layout that recomputes or offloads because it would not fit without."""
    without = dataclasses.replace(plan.parallel, recompute="none", offload="none")
    if without == plan.parallel:
        return plan
    needed = worst_memory(dataclasses.replace(config, parallel=without), Stages.of(config.model, without)).total
    return dataclasses.replace(plan, bound_by="memory") if needed > plan.limit_gib else plan


def order(plan: Plan) -> tuple[Any, ...]:
    """Faster first; among equals no recomputation, less memory, then fewer moving parts."""
    return *_rank(plan.step_s, plan.peak_gib, plan.parallel), plan.layout, plan.microbatch_size


def _bucket(step_s: float) -> int:
    return round(log(step_s) / _EQUAL)


def _rank(step_s: float, peak_gib: float, parallel: ParallelConfig) -> tuple[int, ...]:
    """What decides of a step time and a memory."""
    return (
        _bucket(step_s),
        parallel.offload == "activations",
        parallel.recompute == "full",
        round(log(peak_gib) / _NEAR),
        parallel.zero,
        parallel.sequence_parallel,
        parallel.tp,
        parallel.cp,
        parallel.pp,
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
