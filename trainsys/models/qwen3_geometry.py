"""Qwen3's tensors and how tensor parallelism splits them (Qwen Team 2025, arXiv:2505.09388, §2).

The dense models are Llama plus an RMSNorm of every query and key head, whose weights all heads share.
"""

from __future__ import annotations

import dataclasses

from trainsys.config import ModelConfig
from trainsys.models.family import Tensors, head_dim
from trainsys.models.llama_geometry import LLAMA
from trainsys.space.tensor import LogicalTensor

HEAD_NORMS = ("attention.q_norm", "attention.k_norm")


def _layer(config: ModelConfig, i: int) -> Tensors:
    *before, wo, ffn_norm, w1, w3, w2 = LLAMA.layer(config, i)
    shape = (head_dim(config),)
    norms = (LogicalTensor(f"layers.{i}.{name}.weight", shape, i, partial=True) for name in HEAD_NORMS)
    return (*before, *norms, wo, ffn_norm, w1, w3, w2)


QWEN3 = dataclasses.replace(
    LLAMA,
    module="trainsys.models.qwen3:Qwen3",
    default_ffn_dim=lambda dim: 3 * dim,
    layer=_layer,
)
