"""What all layouts of a block need and can reach, at once: their memory, and a step time that none of them can beat.

Both are sums of a few parts, each of which depends on few axes; the parts come from the functions that also predict one
layout, and arrays put them together. Array axes are those of `enumerate.Block`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.models.geometry import family_of, resolve
from trainsys.planner.communication import hop_s
from trainsys.planner.device import Rate
from trainsys.planner.devices import stage_limits
from trainsys.planner.enumerate import Block
from trainsys.planner.in_flight import FORMS
from trainsys.planner.memory import activation_parts, changing_gib, logit_bytes, state_memory
from trainsys.planner.offload import offload_cost
from trainsys.planner.pipeline import most_in_flight
from trainsys.planner.precision import GIB
from trainsys.planner.predict import after_step, run_parts, run_sums
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outlook:
    """Of every layout of a block.

    Attributes:
        peak_gib: memory of the rank that needs most, or is nearest to its limit.
        limit_gib: that limit.
        least_s: the step takes at least so long.
    """

    peak_gib: Array
    limit_gib: Array
    least_s: Array


class _Parts:
    """A block's layouts part by part; arrays have one axis per axis of the block that matters, then the stages.

    Args:
        vp: of all layouts of the block, where the layers of a stage depend on it; where layers are alike, they do not.
    """

    def __init__(self, config: RunConfig, block: Block, topology: Topology, flops: float, vp: int = 1) -> None:
        self.config, self.block, self.topology, self.flops = config, block, topology, flops
        self.stages = Stages.of(config.model, dataclasses.replace(block.grid, vp=vp))
        self.limits = stage_limits(self.stages, topology)
        self.microbatches = [config.batch.global_size // size // block.grid.dp for size in block.microbatch_sizes]

    def variant(self, size: int, **parallel: Any) -> RunConfig:
        batch = dataclasses.replace(self.config.batch, microbatch_size=size)
        grid = dataclasses.replace(self.block.grid, **parallel)
        return dataclasses.replace(self.config, batch=batch, parallel=grid)

    def worst_stages(self) -> list[int]:
        """Those that can need most memory: both ends, and of equal ones between them the first, which keeps most."""
        layers, last = self.stages.layers, self.stages.count - 1
        held = stage_sizes(self.config.model, self.stages, zero=0).held  # layers need not be alike
        first = {(layers[stage], held[stage], self.limits[stage]): stage for stage in range(last - 1, 0, -1)}
        return sorted({0, last, *first.values()})

    def peaks(self) -> tuple[Array, Array]:
        """GiB of the worst stage, and its limit."""
        block, peaks, limits = self.block, np.zeros(self.block.shape), np.array(self.limits[0])
        if len(set(self.limits)) > 1:
            limits = np.full(block.shape, self.limits[0])
        each, always, logits = self._activations()
        flight = self._in_flight()
        state, changing = self._states()
        for place, stage in enumerate(self.worst_stages()):
            kept = flight[:, None, :, None, None, place] * each[:, :, None, :, :, place]
            kept = (kept + always[:, :, None, :, :, place]) / GIB + logits[:, None, None, None, None, place] / GIB
            total = state[:, None, None, None, None, :, place] + kept[..., None]
            need = np.maximum(total, changing[:, None, None, None, None, :, place])
            if not limits.shape:
                np.maximum(peaks, need, out=peaks)
                continue
            worse = need / self.limits[stage] > peaks / limits
            np.copyto(peaks, need, where=worse)
            limits[worse] = self.limits[stage]
        assert peaks.shape == block.shape
        return peaks, limits

    def _activations(self) -> tuple[Array, Array, Array]:
        """Bytes of one microbatch kept, at work, and of logits."""
        block, stages = self.block, self.worst_stages()
        shape = (*(len(block.axes[axis]) for axis in (0, 1, 3, 4)), len(stages))
        each, always, logits = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], len(stages)))
        for at in product(*map(range, shape[:4])):
            config = self.variant(
                block.microbatch_sizes[at[0]], sequence_parallel=block.sequence_parallel[at[1]],
                recompute=block.recompute[at[2]], offload=block.offload[at[3]],
            )  # fmt: skip
            for place, stage in enumerate(stages):
                each[(*at, place)], always[(*at, place)] = activation_parts(config, self.stages, stage)
                logits[at[0], place] = logit_bytes(config, self.stages, stage)
        return each, always, logits

    def _in_flight(self) -> Array:
        """Microbatches alive, as shares of a stage's layers."""
        block, stages, pp = self.block, self.worst_stages(), self.stages.count
        flight = np.zeros((len(self.microbatches), len(block.schedules), len(stages)))
        for (i, count), (j, (name, vp)) in product(enumerate(self.microbatches), enumerate(block.schedules)):
            alive = most_in_flight(name, count, (1,) * pp, vp)
            flight[i, j] = [alive[stage] / vp for stage in stages]
        return flight

    def _states(self) -> tuple[Array, Array]:
        """GiB held whatever is computed, and while the layout changes: [microbatch size, zero, stage]."""
        block, stages = self.block, self.worst_stages()
        shape = (len(block.microbatch_sizes), len(block.zero), len(stages))
        state, changing = np.zeros(shape), np.zeros(shape)
        for j, zero in enumerate(block.zero):
            sizes = stage_sizes(self.config.model, self.stages, zero, self.config.elastic.tolerate)
            for i, size in enumerate(block.microbatch_sizes):
                config = self.variant(size, zero=zero)
                for place, stage in enumerate(stages):
                    memory = state_memory(config, self.stages, sizes, stage)
                    state[i, j, place], changing[i, j, place] = memory.total, changing_gib(memory, config)
        return state, changing

    def least(self) -> Array:
        """Seconds: the first and the last stage, behind the stages that the first microbatch must pass.

        As in `pipeline.least_ends`, of the stages alone that are last, first, or have most to do.
        """
        block, count = self.block, self.stages.count
        runs_f, runs_b = self._seconds()  # [size, sp, recompute, offload, run]
        f, b = self._of_stages(runs_f), self._of_stages(runs_b)
        hops = self._hops()  # [size, sp, boundary]
        busy = (f + b) * np.array(self.microbatches)[:, None, None, None, None]
        most = int(np.argmax((f + b)[0, 0, 0, 0]))
        known = np.array([name in FORMS for name, _ in block.schedules])[:, None, None, None]
        ahead = known * _before(self._first_runs(runs_f, f), hops)  # [size, sp, schedule, recompute, offload, stage]
        back = known * _before(self._first_runs(runs_b, b), hops)
        first = np.zeros(ahead.shape[:-1])
        for stage in {0, most, count - 1}:
            through = ahead[..., stage] + busy[:, :, None, :, :, stage] + back[..., stage]
            np.maximum(first, through, out=first)
        last = ahead[..., count - 1] + busy[:, :, None, :, :, count - 1]
        after, mirror = self._after()
        ends = [
            time[..., None] + after[:, None, None, None, None, :, place]
            for place, time in enumerate((first, last)[: after.shape[2]])
        ]
        result: Array = np.maximum.reduce(ends) + mirror[:, None, None, None, None, :]
        assert result.shape == block.shape
        return result

    def _seconds(self) -> tuple[Array, Array]:
        """F and B of one microbatch of every run of layers."""
        block = self.block
        shape = (*(len(block.axes[axis]) for axis in (0, 1, 3, 4)), len(self.stages.runs))
        f, b = np.zeros(shape), np.zeros(shape)
        for i, size in enumerate(block.microbatch_sizes):
            for j, sequence_parallel in enumerate(block.sequence_parallel):
                for k, recompute in enumerate(block.recompute):
                    config = self.variant(size, sequence_parallel=sequence_parallel, recompute=recompute)
                    f[i, j, k], b[i, j, k] = run_sums(run_parts(config, self.stages, self.topology, self.flops))
                    for m, offload in enumerate(block.offload):
                        copies = offload_cost(
                            self.variant(
                                size, recompute=recompute, offload=offload, sequence_parallel=sequence_parallel
                            ),
                            self.stages,
                            self.topology,
                        )
                        f[i, j, k, m] += copies.forward_s
                        b[i, j, k, m] += copies.backward_s
        return f, b

    def _hops(self) -> Array:
        """Messages from each stage to the next."""
        block, count = self.block, self.stages.count
        hops = np.zeros((len(block.microbatch_sizes), len(block.sequence_parallel), count))
        for i, j in product(range(hops.shape[0]), range(hops.shape[1])):
            config = self.variant(block.microbatch_sizes[i], sequence_parallel=block.sequence_parallel[j])
            hops[i, j, :-1] = [hop_s(config, self.stages, self.topology, s, s + 1) for s in range(count - 1)]
        return hops

    def _of_stages(self, runs: Array) -> Array:
        """Sums over the runs of each stage."""
        return np.stack([runs[..., list(self.stages.own(s))].sum(-1) for s in range(self.stages.count)], axis=-1)

    def _first_runs(self, runs: Array, stages: Array) -> Array:
        """Seconds of each stage's first run, [size, sp, schedule, recompute, offload, stage]."""
        layers, count = self.stages.layers, self.stages.count
        if self.stages.vp > 1:
            return runs[:, :, None, :, :, :count]
        share = np.ones((len(self.block.schedules), count))
        for j, (_, vp) in enumerate(self.block.schedules):
            first = Stages.of(self.config.model, dataclasses.replace(self.block.grid, vp=vp)).runs
            share[j] = [first[stage] / layers[stage] for stage in range(count)]
        shared: Array = stages[:, :, None] * share[:, None, None, :]
        return shared

    def _after(self) -> tuple[Array, Array]:
        """What follows the first and the last stage, and the mirrors: [microbatch size, zero, end], [size, zero]."""
        block, ends = self.block, sorted({0, self.stages.count - 1})
        after = np.zeros((len(block.microbatch_sizes), len(block.zero), len(ends)))
        mirrors = np.zeros(after.shape[:2])
        for j, zero in enumerate(block.zero):
            for i, size in enumerate(block.microbatch_sizes):
                if i and zero < 2:  # the step's exchange does not depend on it
                    after[i, j], mirrors[i, j] = after[0, j], mirrors[0, j]
                    continue
                config = self.variant(size, zero=zero)
                exchange, update, mirrors[i, j] = after_step(config, self.stages, self.topology, ends)
                after[i, j] = np.add(exchange, update)
        return after, mirrors


def _before(first: Array, hops: Array) -> Array:
    """Seconds through the first runs of all stages before each, messages included."""
    way = first + hops[:, :, None, None, None, :]
    passed: Array = np.cumsum(way, axis=-1) - way
    return passed


def outlook(config: RunConfig, block: Block, topology: Topology, measured: Rate) -> Outlook:
    """Memory and least step time of every layout of a legal `block`, without simulating any."""
    flops, model = measured.sustained(1), resolve(config.model)
    if len({family_of(model).like(model, layer) for layer in range(model.num_layers)}) == 1:
        return _outlook(_Parts(config, block, topology, flops))
    found = [np.zeros(block.shape) for _ in range(3)]
    for vp in {vp for _, vp in block.schedules}:  # which layers a stage has depends on it
        which = [number for number, (_, runs) in enumerate(block.schedules) if runs == vp]
        part = dataclasses.replace(block, schedules=tuple(block.schedules[number] for number in which))
        outlook = _outlook(_Parts(config, part, topology, flops, vp))
        for whole, values in zip(found, (outlook.peak_gib, outlook.limit_gib, outlook.least_s), strict=True):
            whole[:, :, which] = values
    return Outlook(*found)


def _outlook(parts: _Parts) -> Outlook:
    return Outlook(*parts.peaks(), parts.least() * (1 - 1e-12))
