"""Where a step's time and a rank's memory go, module by module: the parts add up to the step and to the peak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.models.geometry import forward_flops, resolve, tensors
from trainsys.planner.communication import boundary_bytes
from trainsys.planner.compute import slowest_compute
from trainsys.planner.devices import on_device, peak_flops, stage_devices
from trainsys.planner.exchanges import exchange_costs
from trainsys.planner.memory import layer_bytes, parameter_elements
from trainsys.planner.on_device import known_device, stage_modules
from trainsys.planner.parts import step_parts
from trainsys.planner.plan import Plan
from trainsys.planner.precision import GIB, Precision
from trainsys.planner.ranking import with_layout
from trainsys.planner.sizes import stage_sizes, team_tokens
from trainsys.planner.stages import Stages
from trainsys.space.tensor import EMBED, LogicalTensor

TITLES = {
    "embedding": "embedding",
    "attention": "attention",
    "mlp": "MLP",
    "norms": "norms, residuals",
    "recomputation": "recomputation",
    "head": "head, loss",
    "tp": "tp communication",
    "cp": "cp communication",
    "ep": "ep communication",
    "dp": "dp communication",
    "pp": "pp messages",
    "offload": "offload",
    "bubble": "bubble, waiting",
    "update": "optimizer",
    "transition": "layout changes",
}


@dataclass(frozen=True)
class Module:
    """One row: seconds of the step on its busiest stage, GiB on the rank that needs most (the two may differ)."""

    name: str
    title: str
    step_s: float
    share: float
    gib: float


def breakdown(config: RunConfig, plan: Plan) -> tuple[Module, ...]:
    """The step of `plan` and its memory by module, in the order of `TITLES`; rows with neither are left out.

    Computing is split by the performance model's seconds on a device of the catalogue, else by FLOPs, in which norms
    and the embedding's lookup have no part. Parameters, gradients and optimizer state lie where their elements lie.
    """
    config = with_layout(config, plan.parallel, plan.microbatch_size)
    stages = Stages.of(config.model, plan.parallel)
    seconds = _computing(config, stages)
    whole = sum(seconds.values())
    parts = step_parts(plan)
    times = {name: s / whole * parts["compute"] for name, s in seconds.items()}
    times |= {name: s for name, s in parts.items() if name != "compute"}
    gib = _memory(config, stages, plan)
    titles = TITLES | ({"mlp": "experts"} if resolve(config.model).num_experts else {})
    rows = (
        Module(name, title, times.get(name, 0.0), times.get(name, 0.0) / plan.step_s, gib.get(name, 0.0))
        for name, title in titles.items()
    )
    return tuple(row for row in rows if row.step_s or row.gib)


def _computing(config: RunConfig, stages: Stages) -> dict[str, float]:
    """Seconds (without a known device: FLOPs) of one microbatch on the busiest stage."""
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    flops = _flops(config)
    costs = (slowest_compute(config, stages, topology, flops), *exchange_costs(config, stages, topology, flops))
    busy = [
        sum(stages.total(cost.forward_s, stage) + stages.total(cost.backward_s, stage) for cost in costs)
        for stage in range(stages.count)
    ]
    busiest = max(range(stages.count), key=lambda stage: busy[stage])
    slowest = min(stage_devices(stages, topology, busiest), key=lambda device: peak_flops(device) * device.efficiency)
    config = on_device(config, slowest)
    device = known_device(config)
    return stage_modules(config, stages, device, busiest) if device else _flop_modules(config, stages, busiest)


def _flops(config: RunConfig) -> float:
    """A rate at which to find the busiest stage; which one it is hardly depends on it."""
    return (config.cluster.device.tflops or 0.1) * 1e12 * config.cluster.device.efficiency


def _flop_modules(config: RunConfig, stages: Stages, stage: int) -> dict[str, float]:
    """FLOPs per token on a rank of `stage`, backward twice the forward's."""
    model, layers = resolve(config.model), stages.layers[stage]
    blocks = [block for block in stages.blocks(stage) if 0 <= block < model.num_layers]
    layer = sum(forward_flops(model, block, config.batch.seq_len, stages.tp) for block in blocks) / layers
    mlp = 2.0 * sum(
        t.numel / t.shards(stages.tp) * (model.experts_per_token / model.num_experts if t.expert is not None else 1.0)
        for t in tensors(model)
        if t.block == 0 and _module_of(t, model.num_layers) == "mlp" and len(t.shape) == 2
    )
    last = stage == stages.head
    return {
        "attention": 3 * layers * (layer - mlp),
        "mlp": 3 * layers * mlp,
        "recomputation": layers * layer if config.parallel.recompute != "none" else 0.0,
        "head": 3 * forward_flops(model, model.num_layers, config.batch.seq_len, stages.tp) if last else 0.0,
    }


def _module_of(tensor: LogicalTensor, num_layers: int) -> str:
    if tensor.block == EMBED:
        return "embedding"
    if tensor.block == num_layers:
        return "head"
    return next(
        (name for part, name in ((".attention.", "attention"), (".feed_forward.", "mlp")) if part in tensor.name),
        "norms",
    )


def _memory(config: RunConfig, stages: Stages, plan: Plan) -> dict[str, float]:
    """GiB by module on the rank that needs most."""
    stage, memory = _fullest(config, stages, plan), plan.memory
    held = _held(config, stages, stage)
    state = memory.parameters + memory.gradients + memory.optimizer + memory.mirror
    gib = {name: state * n / sum(held.values()) for name, n in held.items()}
    kept = dict(_kept(config, stages, stage, memory.activations * GIB))
    for name, amount in kept.items():
        gib[name] = gib.get(name, 0.0) + memory.activations * amount / sum(kept.values())
    gib["head"] = gib.get("head", 0.0) + memory.logits
    return {**gib, "transition": plan.peak_gib - sum(gib.values())}


def _fullest(config: RunConfig, stages: Stages, plan: Plan) -> int:
    """The stage whose states and logits are those of the plan."""
    sizes, size = (
        stage_sizes(config.model, stages, plan.parallel.zero, config.elastic.tolerate),
        Precision.of(config.train.dtype).parameter,
    )
    off = [
        abs(parameter_elements(config, stages, sizes, stage) * size / GIB - plan.memory.parameters)
        + (bool(plan.memory.logits) != (stage == stages.head)) * plan.peak_gib
        for stage in range(stages.count)
    ]
    return min(range(stages.count), key=lambda stage: off[stage])


def _held(config: RunConfig, stages: Stages, stage: int) -> dict[str, float]:
    """Elements of a rank of `stage` by module."""
    model, blocks, held = resolve(config.model), set(stages.blocks(stage)), dict[str, float]()
    for tensor in tensors(model):
        for block in blocks.intersection(tensor.blocks):
            here = 1.0 if tensor.expert is None else -(-model.num_experts // stages.ep) / model.num_experts
            name = _module_of(tensor, model.num_layers)
            if block == tensor.block or tensor.block not in blocks:  # a tied table once
                held[name] = held.get(name, 0.0) + here * prod(tensor.local_shape(stages.tp))
    return held


def _kept(config: RunConfig, stages: Stages, stage: int, activations: float) -> Iterator[tuple[str, float]]:
    """Bytes kept for the backward pass by module, up to a common factor; `layer_bytes` has the formulas."""
    model, size, tp = resolve(config.model), Precision.of(config.train.dtype).activation, stages.tp
    tokens, shards = team_tokens(config), tp if config.parallel.sequence_parallel else 1
    layer = [t for t in tensors(model) if t.block == 0]
    per_norm = 2 if any(t.name.endswith(".bias") for t in layer) else 3
    norms = tokens * (2 * per_norm + (2 if model.dropout else 0)) * model.dim * size / shards
    if model.num_experts:
        inner = 2 * (model.experts_per_token * model.expert_ffn_dim + model.shared_ffn_dim)
        routed = 4 * model.experts_per_token * model.dim * size + 8 * model.num_experts
    else:
        inner = (sum(".feed_forward." in t.name and len(t.shape) == 2 for t in layer) - 1) * model.ffn_dim
        routed = 0
    mlp = tokens * (2 * inner * size / tp + routed)
    once = {"attention": layer_bytes(config, tp) - norms - mlp, "mlp": mlp, "norms": norms}
    boundary = boundary_bytes(config) / shards
    tail = 2 * boundary if stage == stages.head else 0.0
    inputs, times = stages.layers[stage] * boundary, float(stages.layers[stage])
    if config.parallel.recompute == "full":  # inputs of all microbatches in flight, and one layer at work
        in_flight = (activations - sum(once.values())) / (inputs + tail)
        once, times = {**once, "norms": norms + in_flight * inputs}, 1.0
        tail *= in_flight
    yield from ((name, times * amount) for name, amount in once.items())
    yield "head", tail
