"""Llama with linear attention: its tensors, how tensor parallelism splits them, and its FLOPs. Imports no torch.

Each `model.softmax_every`-th layer is Llama's own (a hybrid, as in Jamba, arXiv:2403.19887). Heads are split as there,
and with the key/value heads go their gates and their state.
"""

from __future__ import annotations

import dataclasses

from trainsys.config import ModelConfig
from trainsys.models.family import Tensors, head_dim, kv_dim, q_dim, softmax_flops
from trainsys.models.llama_geometry import LLAMA
from trainsys.space.tensor import LogicalTensor

CHUNK = 64  # positions that are read at once; a chunk costs its square, and a sequence has a state per chunk


def is_softmax(config: ModelConfig, layer: int) -> bool:
    """Whether layer `layer` has Llama's attention."""
    return config.softmax_every > 0 and (layer + 1) % config.softmax_every == 0


def gates(config: ModelConfig) -> int:
    """Features of the gates' projection."""
    return {"none": 0, "diagonal": kv_dim(config)}.get(config.decay, config.num_kv_heads)


def state_elements(config: ModelConfig) -> tuple[int, int]:
    """Elements of a linear layer's state of one sequence, and of the transition of a part of it."""
    d, heads = head_dim(config), config.num_kv_heads
    return heads * d * d, heads * {"diagonal": d, "delta": d * d}.get(config.decay, 1)


def _check(config: ModelConfig) -> None:
    LLAMA.check(config)
    for name in ("softmax_every", "conv_width"):
        if getattr(config, name) < 0:
            raise ValueError(f"model.{name}={getattr(config, name)} must be positive, or 0 for none")


def _layer(config: ModelConfig, i: int) -> Tensors:
    llama = LLAMA.layer(config, i)
    if is_softmax(config, i):
        return llama
    norm, wq, wk, wv, wo, *rest = llama
    dim, q, kv, heads = config.dim, q_dim(config), kv_dim(config), config.num_kv_heads

    def tensor(name: str, rows: int, columns: int, max_shards: int | None = heads) -> LogicalTensor:
        return LogicalTensor(f"layers.{i}.attention.{name}.weight", (rows, columns), i, 0, max_shards=max_shards)

    more = [tensor("wg", gates(config), dim)] if gates(config) else []
    more += [tensor("wb", heads, dim)] if config.decay == "delta" else []
    if config.conv_width:
        more += [tensor("conv_q", q, config.conv_width, None)]
        more += [tensor(name, kv, config.conv_width) for name in ("conv_k", "conv_v")]
    o_norm = LogicalTensor(f"layers.{i}.attention.o_norm.weight", (head_dim(config),), i, partial=True)
    return (norm, wq, wk, wv, *more, o_norm, wo, *rest)


def _like(config: ModelConfig, layer: int) -> int:
    """Layer 0 where all are alike, else the first of the kind."""
    return config.softmax_every - 1 if is_softmax(config, layer) else 0


def _mixing_flops(config: ModelConfig, layer: int, seq_len: int, tp: int) -> float:
    """Per query head a chunk's scores, its values and the reading of a state; per key/value head what the state takes
    in. The delta rule also solves a chunk's system, and multiplies states (`models/delta_chunks.py`)."""
    if is_softmax(config, layer) or not seq_len:
        return softmax_flops(config, layer, seq_len, tp)
    d, chunk = head_dim(config), min(seq_len, CHUNK)
    pairs = (chunk - 1) / 2 if config.decay == "diagonal" else chunk  # which leaves out what looks ahead
    per_query = 4.0 * pairs * d + 2.0 * d * d
    per_state = 2.0 * d * d
    if config.decay == "delta":
        per_query += 2.0 * chunk * d
        per_state += 4.0 * chunk * d + 2.0 * d * d + 2.0 * d**3 / chunk
    return per_query * config.num_heads / tp + per_state * max(1.0, config.num_kv_heads / tp)


def _mixing_bytes(config: ModelConfig, size: int, softmax: float) -> float:
    """What autograd keeps of a linear layer as `models/linear_llama.py` computes; the whole numbers are fitted.

    Around the chunks, of queries and of keys and values: the projections, what the activation function takes, and the
    normalised output. Within them in float32: copies of queries, keys and values, scores and what is left of one
    position at another (C elements per position and head), and of each chunk its states (d elements per position).
    """
    size32, d, q, kv = max(4, size), head_dim(config), q_dim(config), kv_dim(config)
    square, states = CHUNK / d, d / CHUNK
    around = size * ((1 + (config.conv_width > 0)) * (q + 2 * kv) + 2 * q)
    within = {
        "none": q * (3 + square) + kv * (4 + square + states),
        "scalar": q * (4 + 2 * square) + kv * (5 + square + 2 * states),
        "diagonal": q * (6 + square / 2) + kv * (21 + 2 * states),
        "delta": q * (5 + 2 * square) + kv * (10 + 4 * square + 3 * states),
    }[config.decay]
    softmaxes = sum(is_softmax(config, layer) for layer in range(config.num_layers)) / config.num_layers
    linear: float = around + size32 * within
    return softmaxes * softmax + (1 - softmaxes) * linear


LINEAR_LLAMA = dataclasses.replace(
    LLAMA,
    module="trainsys.models.linear_llama:LinearLlama",
    check=_check,
    layer=_layer,
    like=_like,
    mixing_bytes=_mixing_bytes,
    mixing_flops=_mixing_flops,
)
