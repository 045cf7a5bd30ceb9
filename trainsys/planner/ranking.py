"""Layouts in the order of their predicted step time: only those are predicted that a bound does not rule out."""

from __future__ import annotations

import dataclasses
from bisect import insort
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from math import log
from typing import Any

import numpy as np

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.device import Rate
from trainsys.planner.enumerate import Block
from trainsys.planner.plan import EQUAL, Miss, Plan
from trainsys.planner.predict import least_step_s, predict, worst_stage
from trainsys.planner.stages import Stages

_NEAR = 0.05  # memory this close (relative) counts as a tie
Array = np.ndarray[Any, Any]


@dataclass
class Survey:
    """All legal layouts that fit: number `number[i]` of block ``blocks[block[i]]``, and why the others do not. Of
    blocks of which none fits, the nearest in `tight`."""

    blocks: list[Block] = field(default_factory=list)
    block: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    number: Array = field(default_factory=lambda: np.zeros(0, np.int32))
    least_s: Array = field(default_factory=lambda: np.zeros(0))
    peak_gib: Array = field(default_factory=lambda: np.zeros(0))
    rejected: Counter[str] = field(default_factory=Counter)
    legal: int = 0
    nearest: Miss | None = None
    tight: list[tuple[ParallelConfig, int]] = field(default_factory=list)

    def layout(self, index: int) -> tuple[ParallelConfig, int]:
        block: Block = self.blocks[self.block[index]]
        return block.layout(int(self.number[index]))


def with_layout(config: RunConfig, parallel: ParallelConfig, microbatch_size: int) -> RunConfig:
    """`config` with another layout and microbatch size."""
    batch = dataclasses.replace(config.batch, microbatch_size=microbatch_size)
    return dataclasses.replace(config, parallel=parallel, batch=batch)


class Ranking:
    """Predicts layouts of a space as they are asked for, once each."""

    def __init__(self, config: RunConfig, measured: Rate, space: Survey) -> None:
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

    def of_each_pipeline(self, most: int) -> list[tuple[ParallelConfig, int]]:
        """The layout with the least bound of each grid with a pipeline, with one run of layers per stage and with
        several, the first `most` of them; then those nearest to fit of as many grids of which none does."""
        found: dict[tuple[int, bool], tuple[ParallelConfig, int]] = {}
        for index in map(int, self.by_bound):
            block = int(self.space.block[index])
            if self.space.blocks[block].grid.pp > 1:
                parallel, size = self.space.layout(index)
                found.setdefault((block, parallel.vp > 1), (parallel, size))
                if len(found) == most:
                    break
        tight = [(parallel, size) for parallel, size in self.space.tight if parallel.pp > 1]
        return [*found.values(), *tight[:most]]

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

    def in_full(self, plan: Plan) -> Plan:
        """`plan` as the report has it; one of a smaller search is already so."""
        grid = self.space.blocks[0].grid
        if plan.num_ranks != grid.dp * grid.tp * grid.pp * grid.cp:
            return plan
        config = with_layout(self.config, plan.parallel, plan.microbatch_size)
        return _memory_bound(config, predict(config, plan.parallel, self.measured))


def not_dominated(plans: Collection[Plan]) -> list[Plan]:
    """Of `plans` those that no other matches in time, memory and ranks; fastest first."""
    front: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (plan.step_s, plan.peak_gib, plan.num_ranks)):
        if not any(other.peak_gib <= plan.peak_gib and other.num_ranks <= plan.num_ranks for other in front):
            front.append(plan)
    return front


def _memory_bound(config: RunConfig, plan: Plan) -> Plan:
    """Memory bounds a layout that recomputes or offloads because it would not fit without."""
    without = dataclasses.replace(plan.parallel, recompute="none", offload="none")
    if without == plan.parallel:
        return plan
    needed, limit_gib = worst_stage(dataclasses.replace(config, parallel=without), Stages.of(config.model, without))
    return dataclasses.replace(plan, bound_by="memory") if needed.total > limit_gib else plan


def order(plan: Plan) -> tuple[Any, ...]:
    """Faster first; among equals no recomputation, less memory, then fewer moving parts."""
    return *_rank(plan.step_s, plan.peak_gib, plan.parallel), plan.layout, plan.microbatch_size


def _bucket(step_s: float) -> int:
    return round(log(step_s) / EQUAL)


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
