"""Which devices run a stage, where a cluster has several types: what is slowest and smallest among them counts.

The ranks of a stage work in step: those of a team wait for each other in every layer, and replicas with equal shares at
the end. Replicas of which one is slow here and the other there are taken to be slow in both places.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from trainsys.comm.topology import Topology
from trainsys.config import DeviceConfig, RunConfig
from trainsys.planner.device import gemm_flops
from trainsys.planner.stages import Stages


def stage_devices(stages: Stages, topology: Topology, stage: int) -> tuple[DeviceConfig, ...]:
    """The types among the ranks that run `stage`."""
    return _stage_devices(stages, topology, stage) if topology.others else (topology.device,)


@lru_cache(maxsize=8192)
def _stage_devices(stages: Stages, topology: Topology, stage: int) -> tuple[DeviceConfig, ...]:
    if topology.devices or not stages.even:
        teams = {rank // stages.tp for rank in stages.data_group(stage)}
        return tuple(dict.fromkeys(topology.device_of(rank) for team in teams for rank in stages.ranks_of(team)))
    unit, found = stages.cp * stages.tp, dict[DeviceConfig, None]()
    first, stride = stage * unit, stages.count * unit
    for ranks, device in topology.runs_of_devices():  # the replica that ends behind the run's begin: is it in the run?
        replica = max(0, (ranks.start - first - unit) // stride + 1)
        if replica < stages.replicas[0] and first + replica * stride < ranks.stop:
            found[device] = None
    return tuple(found)


def stage_limits(stages: Stages, topology: Topology) -> tuple[float, ...]:
    """GiB that a layout may use of any rank of each stage."""
    if not topology.others:
        return (topology.device.memory_gib,) * stages.count
    return tuple(min(device.memory_gib for device in stage_devices(stages, topology, s)) for s in range(stages.count))


@lru_cache(maxsize=256)
def relative_peaks(topology: Topology) -> float:
    """The sum of all ranks' peaks, as a multiple of ``topology.device``'s."""
    if not topology.others:
        return float(topology.num_ranks)
    if topology.devices:
        devices = [topology.device_of(rank) for rank in range(topology.num_ranks)]
        return sum(peak_flops(device) for device in devices) / peak_flops(topology.device)
    runs = topology.runs_of_devices()
    return sum(len(ranks) * peak_flops(device) for ranks, device in runs) / peak_flops(topology.device)


def peak_flops(device: DeviceConfig) -> float:
    """FLOP/s that are declared, or of this machine."""
    return device.tflops * 1e12 or gemm_flops()


def relative_rate(device: DeviceConfig, other: DeviceConfig) -> float:
    """How many times as fast as `other` a step runs on `device`, by what is declared."""
    return peak_flops(device) * device.efficiency / (peak_flops(other) * other.efficiency)


def on_device(config: RunConfig, device: DeviceConfig) -> RunConfig:
    """`config` with every device a `device`."""
    if device == config.cluster.device:
        return config
    return dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, device=device, other_devices=()))


def by_type(topology: Topology) -> tuple[int, ...]:
    """All ranks in the order in which stages take them, so that most stages are of one type: the larger memory first,
    as early stages keep most microbatches."""
    runs = sorted(topology.runs_of_devices(), key=lambda run: -run[1].memory_gib)
    return tuple(rank for ranks, _ in runs for rank in ranks)


def stage_by_stage(topology: Topology, dp: int, pp: int, unit: int) -> tuple[int, ...]:
    """``parallel.devices`` that give the first ranks of `by_type` to all replicas of the first stage, of `unit` ranks
    each, the next ones to the second stage, and so on."""
    ranks = by_type(topology)
    places = ((stage * dp + replica) * unit for replica in range(dp) for stage in range(pp))
    return tuple(rank for first in places for rank in ranks[first : first + unit])
