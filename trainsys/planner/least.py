"""What a layout takes at least, uniform or ragged, without knowing its schedule: bounds for a best-first search."""

from __future__ import annotations

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.communication import boundary_bytes
from trainsys.planner.device import Rate
from trainsys.planner.in_flight import FORMS, least_ragged
from trainsys.planner.memory import stage_memory
from trainsys.planner.pipeline import least_ragged_ends
from trainsys.planner.predict import after_step, least_step_s, run_parts, run_sums, shares, worst_memory
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages


def busy_s(config: RunConfig, measured: Rate) -> float:
    """Seconds that the busiest rank works on microbatches: no more than `step_s`, and sooner known."""
    _, stages, (f_s, b_s), (microbatches, replicas) = _parts(config, measured)
    once = [stages.total(f_s, stage) + stages.total(b_s, stage) for stage in range(stages.count)]
    return (1 - 1e-12) * max(-(-microbatches // n) * seconds for n, seconds in zip(replicas, once, strict=True))


def step_s(config: RunConfig, measured: Rate) -> float:
    """No step of ``config.parallel`` is predicted to be shorter."""
    topology, stages, (f_s, b_s), (microbatches, replicas) = _parts(config, measured)
    if set(replicas) == {1}:
        return least_step_s(config, measured)
    hop_s, name = _hop_s(config, stages, topology), config.parallel.schedule
    ends = least_ragged_ends(name, microbatches, replicas, f_s, b_s, hop_s)
    exchange, update, mirror = after_step(config, stages, topology)
    return (1 - 1e-12) * (max(map(sum, zip(ends, exchange, update, strict=True))) + mirror)


def memory_gib(config: RunConfig, stages: Stages) -> float:
    """No more than the rank with most needs, and just that where the peak of activations has a closed form."""
    name, (microbatches, replicas) = config.parallel.schedule, shares(config, stages)
    if set(replicas) == {1} and name in FORMS:
        return worst_memory(config, stages).total
    alive = least_ragged(name, microbatches, replicas) if stages.vp == 1 else (1,) * stages.count
    sizes = stage_sizes(config.model, stages, config.parallel.zero, config.elastic.tolerate)
    return max(memory.total for memory in stage_memory(config, stages, sizes, alive))


Seconds = tuple[tuple[float, ...], tuple[float, ...]]


def _parts(config: RunConfig, measured: Rate) -> tuple[Topology, Stages, Seconds, tuple[int, tuple[int, ...]]]:
    """Seconds of F and B of each run, and the microbatches and replicas that do them."""
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    seconds = run_sums(run_parts(config, stages, topology, measured.sustained(1)))
    return topology, stages, seconds, shares(config, stages)


def _hop_s(config: RunConfig, stages: Stages, topology: Topology) -> float:
    """No pipeline message is faster; where links are measured, not looked for."""
    if not topology.regular or stages.count == 1:
        return 0.0
    size = boundary_bytes(config) / (stages.tp if config.parallel.sequence_parallel else 1)
    return min(link.transfer_s(size) for link in (topology.intra_node, topology.inter_node))
