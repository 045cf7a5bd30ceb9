"""Uneven splits of the layers: the stage with the head gets fewer, so that none holds up the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.models.geometry import split_layers
from trainsys.planner.device import Rate
from trainsys.planner.plan import Plan
from trainsys.planner.predict import predict, run_parts, run_sums
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


def least_busy(config: RunConfig, measured: Rate) -> tuple[int, ...]:
    """Layers of each run such that the busiest stage of ``config.parallel`` has least to do.

    All layers cost the same, so the stages are filled one layer at a time, always the one that ends up least busy. Of
    equally good splits the one with fewer layers on early stages, which keep most activations.
    """
    vp, stages = config.parallel.vp, Stages.of(config.model, config.parallel)
    others = [run for run in range(len(stages.runs)) if run % stages.count]
    giver = max(others, key=lambda run: stages.runs[run])
    if stages.runs[giver] == 1:
        return stages.runs
    seconds = _busy(config, stages, measured)
    moved = [n + (run == 0) - (run == giver) for run, n in enumerate(stages.runs)]
    once = _busy(config, dataclasses.replace(stages, runs=tuple(moved)), measured)[0] - seconds[0]
    layers = [vp] * stages.count  # every run has one
    busy = [whole - (own - vp) * once for whole, own in zip(seconds, stages.layers, strict=True)]
    for _ in range(config.model.num_layers - sum(layers)):
        stage = min(range(stages.count), key=lambda s: (round(busy[s] / once, 9), -s))
        layers[stage] += 1
        busy[stage] += once
    by_stage = [split_layers(count, vp) for count in layers]
    return tuple(by_stage[stage][turn] for turn in range(vp) for stage in range(stages.count))


def _busy(config: RunConfig, stages: Stages, measured: Rate) -> list[float]:
    """Seconds of F and B of one microbatch, per stage."""
    topology = Topology.from_config(config.cluster, stages.num_ranks)
    f_s, b_s = run_sums(run_parts(config, stages, topology, measured.sustained(1)))
    return [sum(f_s[s :: stages.count] + b_s[s :: stages.count]) for s in range(stages.count)]
