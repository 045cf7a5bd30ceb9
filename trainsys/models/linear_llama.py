"""Llama with linear attention in plain single-device PyTorch. Its tensors and split rules: linear_llama_geometry.py.

Queries, keys and values see a few positions back (a short convolution, as in Mamba-2 and Gated DeltaNet), gates are
computed from the layer's input, heads are normalised before they are added up (RetNet, arXiv:2307.08621, §2.2). Linear
layers have no rotary positions: they forget by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import SampleKeys
from trainsys.models.family import head_dim, kv_dim, q_dim
from trainsys.models.geometry import resolve
from trainsys.models.linear_attention import Inputs, Mix, mix
from trainsys.models.linear_llama_geometry import gates, is_softmax
from trainsys.models.llama import Attention, FeedForward, Layer
from trainsys.models.rows import Rows

GATE_SCALE = 16.0  # Yang et al. 2023 (arXiv:2312.06635), §4.4: a gate is the 16th root of a sigmoid


class LinearAttention(nn.Module):
    """[B, S, dim] -> [B, S, dim]; the number of heads follows from the projections' local width.

    Attributes:
        mix: what takes in and reads states; a runtime that cuts sequences sets another.
        halo: x [B, S, n], width -> the positions before them [B, width, n]; None: nothing is before.
        starts: bool [B, S], where documents begin; None: nowhere but at the first position.
        rows: set where sequences are cut, for whoever asks.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mix: Mix = mix
        self.halo: Callable[[Tensor, int], Tensor] | None = None
        self.starts: Tensor | None = None
        self.rows: Rows | None = None
        self.decay, self.head_dim, q, kv = config.decay, head_dim(config), q_dim(config), kv_dim(config)
        self.wq, self.wk, self.wv = (nn.Linear(config.dim, n, bias=False) for n in (q, kv, kv))
        if gates(config):
            self.wg = nn.Linear(config.dim, gates(config), bias=False)
        if config.decay == "delta":
            self.wb = nn.Linear(config.dim, config.num_kv_heads, bias=False)
        if config.conv_width:
            self.conv_q, self.conv_k, self.conv_v = (ShortConv(n, config.conv_width) for n in (q, kv, kv))
        self.o_norm = nn.RMSNorm(self.head_dim, eps=config.norm_eps)
        self.wo = nn.Linear(q, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.rows is not None and self.mix is mix:
            raise ValueError("family linear_llama has no states to go between parts of a sequence; set parallel.cp=1")
        out = self.o_norm(self.mix(self.inputs(x)).unflatten(-1, (-1, self.head_dim)))
        projected: Tensor = self.wo(out.flatten(2))
        return projected

    def inputs(self, x: Tensor) -> Inputs:
        """What `mix` works on: of heads of the width that the projections have here."""
        q, k, v = (F.silu(t).unflatten(-1, (-1, self.head_dim)) for t in self._near(x))
        gate, beta = None, None
        if self.decay != "none":
            gate = F.logsigmoid(self.wg(x).to(torch.promote_types(x.dtype, torch.float32))) / GATE_SCALE
        if self.decay == "diagonal":
            assert gate is not None
            gate = gate.unflatten(-1, (-1, self.head_dim))
        if self.decay == "delta":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
            beta = self.wb(x).sigmoid()
        return Inputs(q * self.head_dim**-0.5, k, v, gate, beta, self.starts)

    def _near(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, each with a few positions before it."""
        projected = [self.wq(x), self.wk(x), self.wv(x)]
        if not hasattr(self, "conv_q"):
            return projected
        weight = torch.cat([conv.weight for conv in (self.conv_q, self.conv_k, self.conv_v)])
        near = short_conv(torch.cat(projected, dim=-1), weight, self.halo, self.starts)
        parts: Sequence[Tensor] = near.split([t.shape[-1] for t in projected], dim=-1)
        return parts


class ShortConv(nn.Module):
    """The weights [channels, width] of a causal convolution of each channel by itself; see `short_conv`."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width))
        nn.init.normal_(self.weight, std=0.02)


def short_conv(
    x: Tensor, weight: Tensor, halo: Callable[[Tensor, int], Tensor] | None = None, starts: Tensor | None = None
) -> Tensor:
    """x_t + Σ_w weight_w · x_{t-w}, within a document; near the identity where the weights are small.

    Args:
        x: [B, S, n].
        weight: [n, width].
        halo: see `LinearAttention`.
        starts: bool [B, S].
    """
    back, length = weight.shape[1] - 1, x.shape[1]
    marked = x if starts is None else torch.cat((x, starts.unsqueeze(-1).to(x)), dim=-1)
    before = marked.new_zeros(x.shape[0], back, marked.shape[-1]) if halo is None else halo(marked, back)
    near = torch.cat((before, marked), dim=1)
    number = None if starts is None else (near[..., -1:] > 0).cumsum(1)  # of the document
    near, out = near[..., : x.shape[-1]], x
    for w in range(weight.shape[1]):
        seen = near[:, back - w : back - w + length]
        if number is not None:
            seen = seen * (number[:, back - w : back - w + length] == number[:, back:])
        out = out + seen * weight[:, w]
    return out


class LinearLlama(Decoder):
    """Blocks `blocks` of a Llama whose attention is linear in most layers; see `Decoder`."""

    def __init__(self, config: ModelConfig, blocks: range) -> None:
        config = resolve(config)

        def layer(index: int, keys: SampleKeys) -> nn.Module:
            return Layer(config, Attention if is_softmax(config, index) else LinearAttention, FeedForward)

        super().__init__(config, blocks, layer, norm=lambda: nn.RMSNorm(config.dim, eps=config.norm_eps))
