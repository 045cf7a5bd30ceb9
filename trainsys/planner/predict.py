"""What one layout will cost: step time, memory, and what bounds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.communication import gradient_s, mirror_s, send_s, tensor_cost
from trainsys.planner.compute import compute_cost, model_flops, update_s
from trainsys.planner.device import Rate, rate
from trainsys.planner.memory import Memory, stage_memory
from trainsys.planner.plan import Bound, Plan
from trainsys.planner.precision import Precision
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages, notation
from trainsys.schedule import Costs, Routes, Schedule, Simulation, build, simulate


def predict(config: RunConfig, parallel: ParallelConfig, measured: Rate | None = None) -> Plan:
    """Predicted cost of training `config` with layout `parallel`, uniform or ragged, whether or not it fits.

    Args:
        measured: the rate of a rank; by default from ``config.cluster``.

    Raises:
        ValueError: when the layout needs more ranks than the cluster has, or more replicas than microbatches.
    """
    config = dataclasses.replace(config, parallel=parallel)
    stages = Stages.of(config.model, parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks)
    measured = measured or rate(config.cluster, stages.num_ranks)
    memory = worst_memory(config, stages)
    pipeline = _pipeline(config, stages, topology, measured.flops)
    after = _after(config, stages, topology)
    mirror = mirror_s(config, max(stage_sizes(config.model, stages, parallel.zero).mirrored), topology)
    ends = [p + exchange + update for p, (exchange, update) in zip(pipeline.ends_s, after, strict=True)]
    last = max(range(stages.count), key=lambda stage: ends[stage])
    step_s = ends[last] + mirror
    plan = Plan(
        parallel=parallel,
        layout=notation(parallel),
        step_s=step_s,
        tokens_per_s=config.batch.global_size * config.batch.seq_len / step_s,
        mfu=model_flops(config) / (step_s * measured.peak_flops * topology.num_ranks),
        peak_gib=memory.total,
        limit_gib=config.cluster.device.memory_gib,
        bubble=pipeline.bubble,
        compute_s=pipeline.compute_s,
        tp_s=pipeline.tp_s,
        dp_s=after[last][0] + mirror,
        pp_exposed_s=pipeline.exposed_s,
        update_s=after[last][1],
        memory=memory,
        bound_by="compute",
    )
    return dataclasses.replace(plan, bound_by=_bound(plan))


def worst_memory(config: RunConfig, stages: Stages) -> Memory:
    """Memory on the rank that needs most under ``config.parallel``, by the schedule's peak of live activations."""
    in_flight = _in_flight(config.parallel.schedule, *_simulated(config, stages))
    sizes = stage_sizes(config.model, stages, config.parallel.zero)
    return max(stage_memory(config, stages, sizes, in_flight), key=lambda memory: memory.total)


@dataclass(frozen=True)
class _Pipeline:
    """Forward and backward of all microbatches: when each stage ends, and what its time went into."""

    ends_s: tuple[float, ...]
    bubble: float
    compute_s: float
    tp_s: float
    exposed_s: float


def _pipeline(config: RunConfig, stages: Stages, topology: Topology, flops: float) -> _Pipeline:
    """Simulate the schedule once with its messages and once without: the difference is what they add."""
    compute, tensor = compute_cost(config, stages, flops), tensor_cost(config, stages, topology)
    f_s = tuple(a + b for a, b in zip(compute.forward_s, tensor.forward_s, strict=True))
    b_s = tuple(a + b for a, b in zip(compute.backward_s, tensor.backward_s, strict=True))
    schedule = _schedule(config.parallel.schedule, *_simulated(config, stages))
    hops = _hops(config, stages, topology, schedule)
    run = simulate(schedule, Costs(f_s, b_s, send_s=lambda src, dst: hops[src, dst]))
    free = simulate(schedule, Costs(f_s, b_s)) if stages.count > 1 else run
    stage_of = {lane: stage for (stage, _), lane in schedule.placement.items()}
    busiest = max(range(schedule.num_lanes), key=lambda lane: run.busy_s[lane])
    stage = stage_of[busiest]
    share = (tensor.forward_s[stage] + tensor.backward_s[stage]) / (f_s[stage] + b_s[stage])
    return _Pipeline(
        ends_s=_ends(run, stage_of, stages.count),
        bubble=run.bubble,
        compute_s=run.busy_s[busiest] * (1 - share),
        tp_s=run.busy_s[busiest] * share,
        exposed_s=max(0.0, run.step_s - free.step_s),
    )


def _simulated(config: RunConfig, stages: Stages) -> tuple[int, tuple[int, ...]]:
    """Microbatches and replicas to simulate. Replicas with equal shares are alike: one stands for all."""
    microbatches = config.batch.global_size // config.batch.microbatch_size
    dp = stages.replicas[0]
    if stages.even and microbatches % dp == 0:
        return microbatches // dp, (1,) * stages.count
    return microbatches, stages.replicas


@lru_cache(maxsize=256)
def _schedule(name: str, microbatches: int, replicas: tuple[int, ...]) -> Schedule:
    return build(name, Routes.balanced(microbatches, replicas))


@lru_cache(maxsize=1024)
def _in_flight(name: str, microbatches: int, replicas: tuple[int, ...]) -> tuple[int, ...]:
    """Most activations alive on a lane of each stage; the order of actions decides it, not their duration."""
    schedule = _schedule(name, microbatches, replicas)
    ones = (1.0,) * len(replicas)
    run = simulate(schedule, Costs(ones, ones))
    peak = [0] * len(replicas)
    for (stage, _), lane in schedule.placement.items():
        peak[stage] = max(peak[stage], run.peak_activations[lane])
    return tuple(peak)


def _hops(
    config: RunConfig, stages: Stages, topology: Topology, schedule: Schedule
) -> dict[tuple[int, int], float]:
    """Seconds of a message between any two lanes of neighbouring stages; where one lane stands for all replicas of its
    stage, of the slowest of them."""
    lanes: dict[int, tuple[int, list[int]]] = {}  # lane -> stage, its teams
    for (stage, replica), lane in schedule.placement.items():
        alike = len(schedule.placement) < stages.num_teams
        replicas = range(stages.replicas[stage]) if alike else range(replica, replica + 1)
        lanes[lane] = stage, [stages.team(stage, r) for r in replicas]
    return {
        (a, b): max(send_s(config, stages, topology, x, y) for x, y in zip(lanes[a][1], lanes[b][1], strict=True))
        for a in lanes
        for b in lanes
        if abs(lanes[a][0] - lanes[b][0]) == 1
    }


def _ends(run: Simulation, stage_of: dict[int, int], num_stages: int) -> tuple[float, ...]:
    """When the last lane of each stage has finished computing."""
    ends = [0.0] * num_stages
    for event in run.events:
        if event.action.is_compute:
            stage = stage_of[event.lane]
            ends[stage] = max(ends[stage], event.end_s)
    return tuple(ends)


def _after(config: RunConfig, stages: Stages, topology: Topology) -> list[tuple[float, float]]:
    """Per stage, what follows its last backward: seconds of the gradient exchange and of the update."""
    sizes = stage_sizes(config.model, stages, config.parallel.zero)
    precision = Precision.of(config.train.dtype)
    gbps = config.cluster.device.memory_gbps
    return [
        (
            gradient_s(config, stages, sizes, topology, stage),
            update_s(sizes.owned[stage], sizes.held[stage], precision, gbps),
        )
        for stage in range(stages.count)
    ]


def _bound(plan: Plan) -> Bound:
    """The largest part of the step; what no part explains is time spent waiting for other stages."""
    compute = plan.compute_s + plan.update_s
    parts: dict[Bound, float] = {
        "compute": compute,
        "tp": plan.tp_s,
        "dp": plan.dp_s,
        "bubble": plan.step_s - compute - plan.tp_s - plan.dp_s,
    }
    return max(parts, key=lambda name: parts[name])
