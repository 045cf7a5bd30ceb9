"""Seconds of computing on a device of the catalogue (`trainsys.perf`): products, attention, kernels, layer by layer."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

from trainsys.config import RunConfig
from trainsys.models.family import softmax_flops
from trainsys.models.geometry import family_of, resolve
from trainsys.perf.device import Device, catalogue
from trainsys.perf.head import embedding_s, head_s
from trainsys.perf.job import Degrees, Fabric, Job, Shape
from trainsys.perf.layer import layer_cost
from trainsys.perf.software import Software, software
from trainsys.planner.stages import Stages


def known_device(config: RunConfig) -> Device | None:
    """The catalogue's entry of ``cluster.device.name``; None where one declared or measured rate stands for it all.

    Raises:
        ValueError: its matrix units do not take bfloat16.
    """
    if config.train.dtype != "bfloat16":
        return None
    device = catalogue().get(config.cluster.device.name)
    if device is not None and not device.bf16:
        raise ValueError(
            f"cluster.device.name={device.name} has no bfloat16; set train.dtype=float32, and cluster.device.tflops to "
            "its rate"
        )
    return device


def run_seconds(config: RunConfig, stages: Stages, device: Device) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Forward and backward seconds of one microbatch per run of layers; recomputation is in the backward."""
    job = _job(config, stages.tp, stages.cp, stages.ep, device)
    layer_f, layer_b = _layer(job, mixing(config))
    first, last = embedding_s(job), head_s(job)
    again = layer_f if job.recompute == "full" else 0.0
    forward = [layers * layer_f for layers in stages.runs]
    backward = [layers * (layer_b + again) for layers in stages.runs]
    forward[0], backward[0] = forward[0] + first[0], backward[0] + first[1]
    forward[-1], backward[-1] = forward[-1] + last[0], backward[-1] + last[1]
    return tuple(forward), tuple(backward)


def stage_modules(config: RunConfig, stages: Stages, device: Device, stage: int) -> dict[str, float]:
    """Seconds of one microbatch on a rank of `stage`, forward and backward, by module; the sum of `run_seconds`."""
    job = _job(config, stages.tp, stages.cp, stages.ep, device)
    cost, layers = layer_cost(job), stages.layers[stage]
    per_layer = {
        "attention": sum(cost.attention_s + cost.rotary_s) + mixing(config) * sum(cost.core_s),
        "mlp": sum(cost.mlp_s + cost.activation_s),
        "norms": sum(cost.norm_s),
        "recomputation": _layer(job, mixing(config))[0] if job.recompute == "full" else 0.0,
    }
    return {
        "embedding": sum(embedding_s(job)) if stage == 0 else 0.0,
        **{name: layers * seconds for name, seconds in per_layer.items()},
        "head": sum(head_s(job)) if stage == stages.head else 0.0,
    }


def mixing(config: RunConfig) -> float:
    """What attention takes in the mean over the layers, over a causal softmax, which skips half its products.

    1 of a softmax; linear attention is taken to run at the rate of the same kernel.
    """
    model, seq_len = resolve(config.model), config.batch.seq_len
    softmax, family = softmax_flops(model, 0, seq_len, 1), family_of(model)
    each = [family.mixing_flops(model, layer, seq_len, 1) for layer in range(model.num_layers)]
    return sum(1.0 if flops == softmax else 2 * flops / softmax for flops in each) / model.num_layers


@lru_cache(maxsize=4096)
def _layer(job: Job, mixing: float) -> tuple[float, float]:
    cost = layer_cost(job)
    f, b = (cost.product_s[i] + mixing * cost.core_s[i] + cost.stream_s[i] for i in (0, 1))
    return f, b


def _job(config: RunConfig, tp: int, cp: int, ep: int, device: Device) -> Job:
    """What one team computes of one microbatch, run by this project's own engine."""
    model, batch = resolve(config.model), config.batch
    shape = Shape(
        layers=model.num_layers,
        hidden=model.dim,
        ffn=model.ffn_dim,
        heads=model.num_heads,
        kv_heads=max(model.num_kv_heads, tp),  # a head is repeated where tp ranks outnumber them
        head_dim=model.head_dim or model.dim // model.num_heads,
        vocab=model.vocab_size,
        gated=model.family != "gpt2",
        tied=model.tied,
        experts=model.num_experts,
        topk=model.experts_per_token if model.num_experts else 0,
        expert_ffn=model.expert_ffn_dim if model.num_experts else 0,
        shared_experts=-(-model.shared_ffn_dim // model.expert_ffn_dim) if model.num_experts else 0,
    )
    return Job(
        shape=shape,
        degrees=Degrees(dp=ep, tp=tp, cp=cp, ep=ep),
        device=device,
        fabric=Fabric(config.cluster.ranks_per_node, config.cluster.inter_node.gbps * config.cluster.ranks_per_node),
        software=_software(device),
        seq=batch.seq_len,
        microbatch=batch.microbatch_size,
        global_batch=ep * batch.microbatch_size,
        recompute="full" if config.parallel.recompute != "none" else "none",
        sequence_parallel=config.parallel.sequence_parallel,
    )


@lru_cache(maxsize=64)
def _software(device: Device) -> Software:
    """Ours, with the attention kernel that torch has for the device."""
    ours = software("trainsys")
    if ours.attention in device.attention:
        return ours
    return dataclasses.replace(ours, attention=next(iter(device.attention), "unfused"))
