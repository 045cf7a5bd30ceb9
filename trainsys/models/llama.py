"""Llama in plain single-device PyTorch (arXiv:2302.13971): RMSNorm, rotary positions, grouped queries, SwiGLU.

Its tensors and split rules: llama_geometry.py. `attention` and `feed_forward` are the tensor-parallel regions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models.attention import Attend, causal_attention
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import SampleKeys
from trainsys.models.family import head_dim, kv_dim, q_dim
from trainsys.models.geometry import resolve
from trainsys.models.rotary import rotate
from trainsys.models.rows import Rows


class Attention(nn.Module):
    """[B, S, dim] -> [B, S, dim]; the number of heads follows from the projections' local width.

    Attributes:
        rows, attend: which positions are here, and attention among all; a runtime that cuts sequences sets both.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rows: Rows | None = None
        self.attend: Attend = partial(causal_attention, window=config.window)
        self.head_dim, self.theta = head_dim(config), config.rope_theta
        self.wq = nn.Linear(config.dim, q_dim(config), bias=False)
        self.wk = nn.Linear(config.dim, kv_dim(config), bias=False)
        self.wv = nn.Linear(config.dim, kv_dim(config), bias=False)
        self.wo = nn.Linear(q_dim(config), config.dim, bias=False)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [B, S, heads, head_dim] before their rotation."""
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        out: Tensor = self.wo(self.attend(rotate(q, self.theta, self.rows), rotate(k, self.theta, self.rows), v))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): w2(silu(w1 x) · w3 x), `width` (0: ``ffn_dim``) features wide."""

    def __init__(self, config: ModelConfig, width: int = 0) -> None:
        super().__init__()
        width = width or config.ffn_dim
        self.w1 = nn.Linear(config.dim, width, bias=False)
        self.w3 = nn.Linear(config.dim, width, bias=False)
        self.w2 = nn.Linear(width, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class Layer(nn.Module):
    def __init__(
        self,
        config: ModelConfig,
        attention: Callable[[ModelConfig], nn.Module],
        feed_forward: Callable[[ModelConfig], nn.Module],
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = attention(config)
        self.ffn_norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.feed_forward = feed_forward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return out


class Llama(Decoder):
    """Blocks `blocks` of a Llama; see `Decoder`. A kindred family names another `attention` or `feed_forward`."""

    attention: type[Attention] = Attention
    feed_forward: type[nn.Module] = FeedForward

    def __init__(self, config: ModelConfig, blocks: range) -> None:
        config = resolve(config)

        def layer(index: int, keys: SampleKeys) -> nn.Module:
            return Layer(config, self.attention, self.feed_forward)

        super().__init__(config, blocks, layer, norm=lambda: nn.RMSNorm(config.dim, eps=config.norm_eps))
