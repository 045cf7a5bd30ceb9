"""Seconds that attention between cp teams adds: of the better of its two families, in closed form, for the search.

`planner/attention.py` plays all methods for the plan that is written; what is searched needs an answer at once.
"""

from __future__ import annotations

from trainsys.comm.topology import Link, Topology
from trainsys.config import RunConfig
from trainsys.models.family import kv_dim, q_dim
from trainsys.models.geometry import resolve
from trainsys.planner.communication import TensorCost, all_gather_s, slowest_link
from trainsys.planner.groups import sequence_links
from trainsys.planner.precision import Precision
from trainsys.planner.stages import Stages
from trainsys.planner.states import linear_s, softmax_layers


def context_cost(config: RunConfig, stages: Stages, topology: Topology, flops: float) -> TensorCost:
    """Exposed seconds in one microbatch, per run of layers; linear ones exchange states. Recomputing repeats forwards.

    Args:
        flops: of a rank, beside whose attention keys and values travel.
    """
    if stages.cp == 1:
        return TensorCost.nothing(stages)
    again, forward, backward = config.parallel.recompute != "none", [], []
    for run in range(len(stages.runs)):
        worst = slowest_link(sequence_links(stages, topology, stages.host(run)), _keys_bytes(config, stages))
        f_s, b_s = _layer(config, stages, worst, flops)
        layers, states_s = softmax_layers(config, stages, run), linear_s(config, stages, run, worst)
        forward.append(layers * f_s + states_s)
        backward.append(layers * (b_s + again * f_s) + (1 + again) * states_s)
    return TensorCost(tuple(forward), tuple(backward))


def _layer(config: RunConfig, stages: Stages, worst: Link | None, flops: float) -> tuple[float, float]:
    """Forward and backward of one layer."""
    keys, heads = _travelling_keys(config, stages, worst, flops), _shared_heads(config, stages, worst)
    method = config.parallel.cp_method
    if method == "ulysses" and heads:
        return heads
    return min(keys, heads, key=sum) if heads and method == "auto" else keys


def _travelling_keys(config: RunConfig, stages: Stages, worst: Link | None, flops: float) -> tuple[float, float]:
    """Keys go round beside attention (Liu et al. 2023, arXiv:2310.01889, §3), backward with gradients in float32.

    The last part to come still has to be attended to, and its gradients still have to go home.
    """
    cp, model, batch = stages.cp, resolve(config.model), config.batch
    gather = all_gather_s(_keys_bytes(config, stages), cp, worst)
    home = all_gather_s(_keys_bytes(config, stages, gradients=True), cp, worst)
    tokens = batch.microbatch_size * batch.seq_len / cp
    core = 4 * tokens * batch.seq_len * q_dim(model) / stages.tp / flops  # forward; backward twice that, as is counted
    beside = core * (cp - 1) / cp
    return max(0.0, gather - beside), max(home / (cp - 1), gather + home - 2 * beside)


def _shared_heads(config: RunConfig, stages: Stages, worst: Link | None) -> tuple[float, float] | None:
    """Heads for positions and back (Jacobs et al. 2023, arXiv:2309.14509, §3.2), beside nothing; None where too few."""
    cp, model, parallel = stages.cp, resolve(config.model), config.parallel
    heads, kv_heads = model.num_heads // stages.tp, max(1, model.num_kv_heads // stages.tp)
    if heads < cp or (parallel.cp_merge == "canonical" and kv_heads % cp):
        return None
    width = 2 * q_dim(model) // stages.tp + 2 * kv_dim(model) // model.num_kv_heads * max(kv_heads, cp)
    tokens = config.batch.microbatch_size * config.batch.seq_len / cp
    once = all_gather_s(tokens * width * Precision.of(config.train.dtype).activation, cp, worst)
    return once, once


def _keys_bytes(config: RunConfig, stages: Stages, gradients: bool = False) -> float:
    """Of a layer's keys and values of all positions; each tp rank has heads of its own, one at least."""
    model, tokens = resolve(config.model), config.batch.microbatch_size * config.batch.seq_len
    width = kv_dim(model) // min(stages.tp, model.num_kv_heads)
    size = Precision.of(config.train.dtype).activation
    return 2 * tokens * width * (max(4, size) if gradients else size)
