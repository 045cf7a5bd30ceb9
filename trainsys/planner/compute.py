"""Seconds of computing: forward and backward of one microbatch per stage, and the optimizer's update."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.comm.topology import Topology
from trainsys.config import DeviceConfig, RunConfig
from trainsys.models.geometry import forward_flops, last_block
from trainsys.planner.devices import on_device, relative_rate, stage_devices
from trainsys.planner.on_device import known_device, run_seconds
from trainsys.planner.precision import Precision
from trainsys.planner.sizes import team_tokens
from trainsys.planner.stages import Stages


@dataclass(frozen=True)
class ComputeCost:
    """Seconds of one microbatch on one rank, per run of layers; without vp that is per stage."""

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]  # recomputation included


def compute_cost(config: RunConfig, stages: Stages, flops: float) -> ComputeCost:
    """F = forward FLOPs of a tp rank · tokens / `flops`; B = 2 F, and the layers' F once more under full recomputation.

    Narayanan et al. 2021 (arXiv:2104.04473), §5.1 and appendix. The embedding and the head load the first and the last
    stage, so that stages with equally many layers are not equally slow. Under cp a team has its part of the positions,
    cut so that all look at equally many keys. Of a device in the catalogue, `on_device` knows better.
    """
    device = known_device(config)
    if device is not None:
        return ComputeCost(*run_seconds(config, stages, device))
    batch, head, tokens = config.batch, config.model.num_layers, team_tokens(config)
    recomputes = config.parallel.recompute != "none"
    forward, backward = [], []
    for run in range(len(stages.runs)):
        blocks = (*stages.run_blocks(run), *stages.parts_with(run))  # S counts as F, T as twice that
        seconds = {b: forward_flops(config.model, b, batch.seq_len, stages.tp) * tokens for b in blocks}
        once = sum(seconds.values()) / flops
        again = sum(s for b, s in seconds.items() if 0 <= b < head) / flops if recomputes else 0.0
        forward.append(once)
        backward.append(2 * once + again)
    return ComputeCost(tuple(forward), tuple(backward))


def vocabulary_s(config: RunConfig, stages: Stages, flops: float) -> tuple[float, ...]:
    """Of F of `compute_cost` the seconds of the vocabulary's parts, per run; none on a device in the catalogue."""
    seq_len, per_s = config.batch.seq_len, team_tokens(config) / flops if known_device(config) is None else 0.0
    runs = range(len(stages.runs))
    return tuple(
        per_s * sum(forward_flops(config.model, b, seq_len, stages.tp) for b in stages.parts_with(run)) for run in runs
    )


def slowest_compute(config: RunConfig, stages: Stages, topology: Topology, flops: float) -> ComputeCost:
    """`compute_cost` where devices differ: of each run what it takes on the slowest device that runs its stage.

    Args:
        flops: of ``cluster.device``; others have theirs in proportion to what is declared of both.
    """
    if not topology.others:
        return compute_cost(config, stages, flops)
    own, costs = config.cluster.device, dict[DeviceConfig, ComputeCost]()
    forward, backward = [], []
    for run in range(len(stages.runs)):
        devices = stage_devices(stages, topology, stages.host(run))
        for device in devices:
            if device not in costs:
                rate = flops if device == own else flops * relative_rate(device, own)
                costs[device] = compute_cost(on_device(config, device), stages, rate)
        forward.append(max(costs[device].forward_s[run] for device in devices))
        backward.append(max(costs[device].backward_s[run] for device in devices))
    return ComputeCost(tuple(forward), tuple(backward))


def model_flops(config: RunConfig) -> float:
    """FLOPs of one step that the model needs, forward and twice that backward, without any recomputation.

    The numerator of MFU: Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B.
    """
    blocks = range(-1, last_block(config.model) + 1)
    per_token = sum(forward_flops(config.model, block, config.batch.seq_len) for block in blocks)
    return 3 * per_token * config.batch.tokens


def update_s(owned: float, held: float, precision: Precision, memory_gbps: float) -> float:
    """Seconds of Adam on a rank that owns `owned` elements and holds `held` parameters: bound by device memory.

    Per owned element the master copy and both moments are read and written and the gradient is read twice (its norm,
    then its use); every held parameter is written.
    """
    moved = owned * (6 * precision.state + 2 * precision.gradient) + held * precision.parameter
    return moved / (memory_gbps * 1e9)
