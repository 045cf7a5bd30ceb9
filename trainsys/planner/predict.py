"""What one layout will cost: step time, memory, and what bounds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.communication import TensorCost, gradient_s, hop_s, mirror_s, send_s, shared_s
from trainsys.planner.compute import model_flops, slowest_compute, update_s
from trainsys.planner.device import Rate, rate
from trainsys.planner.devices import relative_peaks, stage_devices, stage_limits
from trainsys.planner.exchanges import exchange_costs
from trainsys.planner.in_flight import FORMS
from trainsys.planner.memory import Memory, stage_memory
from trainsys.planner.offload import offload_cost
from trainsys.planner.pipeline import Hops, hop_lists, least_ends, most_in_flight, run_pipeline
from trainsys.planner.plan import Bound, Plan
from trainsys.planner.precision import Precision
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages, notation
from trainsys.planner.step_schedule import weight_s
from trainsys.planner.wide import is_wide
from trainsys.schedule import Routes
from trainsys.schedule.problem import BARRIERS
from trainsys.schedule.schedule import stage_major


def predict(config: RunConfig, parallel: ParallelConfig, measured: Rate | None = None, whole: bool = True) -> Plan:
    """Predicted cost of training `config` with layout `parallel`, uniform or ragged, whether or not it fits.

    A stage is done when its last backward, its gradient exchange and its update are: the slowest one ends the step,
    after which the peers' mirrors are refreshed.

    Args:
        measured: the rate of a rank; by default from ``config.cluster``.
        whole: also what the pipeline's messages add, which takes a second simulation.

    Raises:
        ValueError: when the layout needs more ranks than the cluster has, or more replicas than microbatches.
    """
    config = dataclasses.replace(config, parallel=parallel)
    stages = Stages.of(config.model, parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, parallel.devices)
    measured = measured or rate(config.cluster, stages.num_ranks)
    memory, limit_gib = worst_stage(config, stages, topology)
    work = _pipeline(config, stages, topology, measured.sustained(1), whole)
    if measured.cores:
        busy_ranks = (1 - work.bubble) * stages.num_ranks
        work = _pipeline(config, stages, topology, measured.sustained(busy_ranks), whole)
    exchange, update, mirror = after_step(config, stages, topology)
    ends = [sum(parts) for parts in zip(work.ends_s, exchange, update, strict=True)]
    last = max(range(stages.count), key=lambda stage: ends[stage])
    step_s = ends[last] + mirror
    plan = Plan(
        parallel=parallel,
        layout=notation(parallel),
        step_s=step_s,
        tokens_per_s=config.batch.tokens / step_s,
        mfu=model_flops(config) / (step_s * measured.peak_flops * relative_peaks(topology)),
        peak_gib=memory.total,
        limit_gib=limit_gib,
        bubble=work.bubble,
        compute_s=work.parts_s[0],
        tp_s=work.parts_s[1],
        cp_s=work.parts_s[2],
        ep_s=work.parts_s[3],
        dp_s=exchange[last] + mirror,
        pp_exposed_s=work.exposed_s,
        update_s=update[last],
        memory=memory,
        bound_by="compute",
        offload_s=work.parts_s[4],
        microbatch_size=config.batch.microbatch_size,
    )
    return dataclasses.replace(plan, bound_by=_bound(plan))


def least_step_s(config: RunConfig, measured: Rate) -> float:
    """No step of the uniform layout ``config.parallel`` is predicted to be shorter; without a simulation."""
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    f_s, b_s = run_sums(run_parts(config, stages, topology, measured.sustained(1)))
    microbatches, replicas = shares(config, stages)
    exchange, update, mirror = after_step(config, stages, topology)
    if stages.count == 1:
        ends = [microbatches * (f_s[0] + b_s[0])]
    else:
        hops = hop_lists(hops_of(config, stages, topology, replicas), stages.count)
        ends = least_ends(config.parallel.schedule, microbatches, stages.count, f_s, b_s, *hops)
    return (1 - 1e-12) * (max(map(sum, zip(ends, exchange, update, strict=True))) + mirror)


def worst_memory(config: RunConfig, stages: Stages) -> Memory:
    """Memory on the rank that needs most under ``config.parallel``, by the schedule's peak of live activations."""
    return max(_memories(config, stages), key=lambda memory: memory.total)


def worst_stage(config: RunConfig, stages: Stages, topology: Topology | None = None) -> tuple[Memory, float]:
    """Memory of a rank of the stage that is nearest to its limit or furthest above it, and that limit in GiB."""
    if not config.cluster.other_devices:
        return worst_memory(config, stages), config.cluster.device.memory_gib
    topology = topology or Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    memories = zip(_memories(config, stages), stage_limits(stages, topology), strict=True)
    return max(memories, key=lambda entry: (entry[0].total / entry[1], entry[0].total))


def _memories(config: RunConfig, stages: Stages) -> tuple[Memory, ...]:
    in_flight = most_in_flight(config.parallel.schedule, *shares(config, stages), stages.vp)
    in_flight = tuple(n + stages.vp * BARRIERS[config.parallel.vocabulary] for n in in_flight)
    sizes = stage_sizes(config.model, stages, config.parallel.zero, config.elastic.tolerate)
    return stage_memory(config, stages, sizes, in_flight)


@dataclasses.dataclass(frozen=True)
class _Work:
    """Forward and backward of all microbatches: when each stage ends, and what the busiest one's time went into:
    computing, tensor, context and expert parallelism, copies to the host and back."""

    ends_s: tuple[float, ...]
    bubble: float
    parts_s: tuple[float, ...]
    exposed_s: float


def run_parts(config: RunConfig, stages: Stages, topology: Topology, flops: float) -> tuple[TensorCost, ...]:
    """Seconds of F and B of one microbatch, per run of layers, by what they are spent on."""
    compute = slowest_compute(config, stages, topology, flops)
    return (TensorCost(compute.forward_s, compute.backward_s), *exchange_costs(config, stages, topology, flops),
            offload_cost(config, stages, topology))  # fmt: skip


def run_sums(parts: Sequence[TensorCost]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds of F and of B, per run."""
    f_s = tuple(map(sum, zip(*(part.forward_s for part in parts), strict=True)))
    return f_s, tuple(map(sum, zip(*(part.backward_s for part in parts), strict=True)))


def _pipeline(config: RunConfig, stages: Stages, topology: Topology, flops: float, whole: bool) -> _Work:
    """The schedule with its messages and, if `whole`, without: the difference is what they add."""
    parts = run_parts(config, stages, topology, flops)
    f_s, b_s = run_sums(parts)
    name, (microbatches, replicas) = config.parallel.schedule, shares(config, stages)
    hops = hops_of(config, stages, topology, replicas)
    w_s = () if name in FORMS else weight_s(config, stages, parts[0].backward_s)
    run = run_pipeline(name, microbatches, replicas, f_s, b_s, hops, w_s)
    free = run_pipeline(name, microbatches, replicas, f_s, b_s, None, w_s) if whole and stages.count > 1 else run
    busiest = max(range(stages.count), key=lambda stage: run.busy_s[stage])
    share = run.busy_s[busiest] / (stages.total(f_s, busiest) + stages.total(b_s, busiest))
    return _Work(
        ends_s=run.ends_s,
        bubble=run.bubble,
        parts_s=tuple(
            share * (stages.total(part.forward_s, busiest) + stages.total(part.backward_s, busiest)) for part in parts
        ),
        exposed_s=max(0.0, run.step_s - free.step_s),
    )


def shares(config: RunConfig, stages: Stages) -> tuple[int, tuple[int, ...]]:
    """Microbatches and replicas to simulate. Replicas with equal shares are alike: one stands for all, and of many
    (`wide`) with nearly equal shares the busiest."""
    microbatches = config.batch.global_size // config.batch.microbatch_size
    dp = stages.replicas[0]
    if stages.even and (microbatches % dp == 0 or is_wide(microbatches, stages.replicas, len(stages.runs))):
        return -(-microbatches // dp), (1,) * stages.count
    return microbatches, stages.replicas


def hops_of(config: RunConfig, stages: Stages, topology: Topology, replicas: tuple[int, ...]) -> Hops:
    """Seconds of a message between any two lanes of neighbouring stages of the simulated `replicas` that send any.

    Where one lane stands for all replicas of its stage, and in `wide` pipelines, between two stages the slowest pair.
    """
    if stages.count == 1:
        return {}
    count, wraps = stages.count, stages.vp > 1 and not stages.folded
    microbatches = config.batch.global_size // config.batch.microbatch_size
    near = [(a, b) for a in range(count) for b in (a - 1, a + 1) if 0 <= b < count]
    near += [(0, count - 1), (count - 1, 0)] if wraps and count > 2 else []
    if replicas != stages.replicas or set(replicas) == {1}:
        return {(a, b): hop_s(config, stages, topology, a, b) for a, b in near}
    rows = Routes.balanced(microbatches, replicas).table
    teams = {(stage, x): stages.team(stage, x) for stage in range(count) for x in range(replicas[stage])}
    pairs = ((a, b, x, y) for a, b in near for x, y in dict.fromkeys(zip(rows[a], rows[b], strict=True)))
    seconds = {(a, b, x, y): send_s(config, stages, topology, teams[a, x], teams[b, y]) for a, b, x, y in pairs}
    if not is_wide(microbatches, replicas, len(stages.runs)):
        lanes = stage_major(replicas)
        return {(lanes[a, x], lanes[b, y]): hop for (a, b, x, y), hop in seconds.items()}
    slowest: dict[tuple[int, int], float] = {}
    for (a, b, _, _), hop in seconds.items():
        slowest[a, b] = max(hop, slowest.get((a, b), 0.0))
    return slowest


def after_step(
    config: RunConfig, stages: Stages, topology: Topology, which: Sequence[int] | None = None
) -> tuple[list[float], list[float], float]:
    """What follows a stage's last backward: seconds of the gradient exchange, of the update, and of the mirrors.

    Args:
        which: the stages to look at; by default all.
    """
    sizes, precision = (
        stage_sizes(config.model, stages, config.parallel.zero, config.elastic.tolerate),
        Precision.of(config.train.dtype),
    )
    which = range(stages.count) if which is None else which
    gbps = {s: min(device.memory_gbps for device in stage_devices(stages, topology, s)) for s in which}
    exchange = [
        gradient_s(config, stages, sizes, topology, stage) + shared_s(config, stages, topology, stage)
        for stage in which
    ]
    update = [update_s(sizes.owned[stage], sizes.held[stage], precision, gbps[stage]) for stage in which]
    return exchange, update, mirror_s(config, max(sizes.mirrored), topology)


def _bound(plan: Plan) -> Bound:
    """The largest part of the step; what no part explains is time spent waiting for other stages."""
    parts: dict[Bound, float] = {
        "compute": plan.compute_s + plan.update_s,
        "tp": plan.tp_s,
        "cp": plan.cp_s,
        "ep": plan.ep_s,
        "dp": plan.dp_s,
        "offload": plan.offload_s,
        "bubble": plan.waiting_s,
    }
    return max(parts, key=lambda name: parts[name])
