"""Qwen3 in plain single-device PyTorch (arXiv:2505.09388, §2): Llama with an RMSNorm of every query and key head.

Its tensors and split rules: qwen3_geometry.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models import llama


class Attention(llama.Attention):
    """Llama's attention on normalised heads (Dehghani et al. 2023, arXiv:2302.05442, §2); one weight for all heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v


class Qwen3(llama.Llama):
    """Blocks `blocks` of a Qwen3; see `Decoder`."""

    attention = Attention
