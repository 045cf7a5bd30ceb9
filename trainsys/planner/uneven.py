"""Uneven splits of the layers: stages with the head or on slow devices get fewer, so that none holds up the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from trainsys.comm.topology import Topology
from trainsys.config import DeviceConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import split_layers
from trainsys.planner.device import Rate
from trainsys.planner.devices import stage_devices
from trainsys.planner.plan import Plan
from trainsys.planner.predict import predict, run_parts, run_sums, shares
from trainsys.planner.ranking import with_layout
from trainsys.planner.stages import Stages


def evened(config: RunConfig, plans: Sequence[Plan], measured: Rate) -> Iterator[Plan]:
    """Of each pipeline among `plans` the split whose busiest stage has least to do, where it fits and is another one.

    Fewest seconds of F and B on the busiest stage; then a simulation says what it is worth.
    """
    for plan in plans:
        if plan.parallel.pp == 1:
            continue
        batch = dataclasses.replace(config.batch, microbatch_size=plan.microbatch_size)
        own = dataclasses.replace(config, batch=batch, parallel=plan.parallel)
        runs = least_busy(own, measured)
        if runs == Stages.of(config.model, plan.parallel).runs:
            continue
        other = predict(own, dataclasses.replace(plan.parallel, stage_layers=runs), measured, whole=False)
        if other.peak_gib <= other.limit_gib:
            yield other


def most_promising(
    config: RunConfig, layouts: Sequence[tuple[ParallelConfig, int]], measured: Rate, most: int
) -> list[Plan]:
    """Of `layouts` (with their microbatch sizes) those that would be fastest if layers could be split at will."""
    configs = [with_layout(config, parallel, size) for parallel, size in layouts]
    configs = sorted(configs, key=lambda own: _levelled_s(own, measured))[:most]
    return [predict(own, own.parallel, measured, whole=False) for own in configs]


def _levelled_s(config: RunConfig, measured: Rate) -> float:
    """Seconds of a step whose stages all have equally much to do, the exchange after it left out."""
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    layers_per_s = sum(n / s for n, s in zip(stages.layers, _busy(config, stages, topology, measured), strict=True))
    microbatches, _ = shares(config, stages)
    return config.model.num_layers / layers_per_s * (microbatches + (stages.count - 1) / stages.vp)


def least_busy(config: RunConfig, measured: Rate) -> tuple[int, ...]:
    """Layers of each run such that the busiest stage of ``config.parallel`` has least to do.

    All layers of a stage cost the same, so the stages are filled one layer at a time, always the one that ends up least
    busy. Of equally good splits the one with fewer layers on early stages, which keep most activations.
    """
    vp, stages = config.parallel.vp, Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    seconds, known = _busy(config, stages, topology, measured), dict[tuple[DeviceConfig, ...], float]()
    for stage in range(stages.count):
        devices = stage_devices(stages, topology, stage)
        if devices not in known:
            giver = max((r for r in range(len(stages.runs)) if stages.host(r) != stage), key=stages.runs.__getitem__)
            if stages.runs[giver] == 1:
                return stages.runs
            moved = tuple(n + (run == stage) - (run == giver) for run, n in enumerate(stages.runs))
            more = _busy(config, dataclasses.replace(stages, runs=moved), topology, measured)
            known[devices] = more[stage] - seconds[stage]
    once = [known[stage_devices(stages, topology, stage)] for stage in range(stages.count)]
    layers = [vp] * stages.count  # every run has one
    busy = [whole - (own - vp) * layer for whole, own, layer in zip(seconds, stages.layers, once, strict=True)]
    for _ in range(config.model.num_layers - sum(layers)):
        stage = min(range(stages.count), key=lambda s: (round((busy[s] + once[s]) / once[0], 9), -s))
        layers[stage] += 1
        busy[stage] += once[stage]
    by_stage = [split_layers(count, vp) for count in layers]
    parts = {run: n for own in range(stages.count) for run, n in zip(stages.own(own), by_stage[own], strict=True)}
    return tuple(parts[run] for run in sorted(parts))


def _busy(config: RunConfig, stages: Stages, topology: Topology, measured: Rate) -> list[float]:
    """Seconds of F and B of one microbatch, per stage."""
    f_s, b_s = run_sums(run_parts(config, stages, topology, measured.sustained(1)))
    return [stages.total(f_s, stage) + stages.total(b_s, stage) for stage in range(stages.count)]
