"""Attention by gathering everybody's keys and values (Llama 3, arXiv:2407.21783, §3.3.2).

Keys and values are small beside the queries under grouped-query attention, and one exchange per layer suffices. The
backward sends each position's gradients to the rank that has it, which adds them in the order of cp indices.

    B = microbatch, S = whole sequence, S_i = positions here
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainsys.models.attention import causal_attention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.parallel.tensor import apply


class _Gather(torch.autograd.Function):
    """[2, B, S_i, heads, head_dim] -> [2, B, S, heads, head_dim]; the backward scatters the sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cp: ContextParallel) -> Tensor:
        ctx.cp = cp
        return cp.gather(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.cp.scatter_sum(grad), None


def attend(q: Tensor, k: Tensor, v: Tensor, cp: ContextParallel) -> Tensor:
    """As `causal_attention`, of this rank's positions among all.

    Each of the two chunks of queries looks at the keys up to its own end.

    Args:
        q: [B, S_i, heads, head_dim].
        k, v: [B, S_i, kv_heads, head_dim].

    Returns:
        [B, S_i, heads · head_dim].
    """
    keys, values = apply(_Gather, torch.stack((k, v)), cp).unbind()
    queries = q.split([len(part) for part in cp.parts], dim=1)
    answers = [
        causal_attention(own, keys[:, : part.stop], values[:, : part.stop])
        for own, part in zip(queries, cp.parts, strict=True)
    ]
    return torch.cat(answers, dim=1)
