"""Seconds of keeping activations with the host: out after the forward, back for the backward."""

from __future__ import annotations

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.communication import TensorCost
from trainsys.planner.devices import stage_devices
from trainsys.planner.memory import kept_bytes
from trainsys.planner.stages import Stages


def offload_cost(config: RunConfig, stages: Stages, topology: Topology) -> TensorCost:
    """Exposed seconds of the copies of one microbatch, per run of layers: the engine waits for each."""
    if config.parallel.offload == "none":
        return TensorCost.nothing(stages)
    last = len(stages.runs) - 1
    moved = [kept_bytes(config, stages, layers, run == last) for run, layers in enumerate(stages.runs)]
    gbps = [min(d.host_gbps for d in stage_devices(stages, topology, stage)) for stage in range(stages.count)]
    once = tuple(size / (gbps[stages.host(run)] * 1e9) for run, size in enumerate(moved))
    return TensorCost(once, once)
