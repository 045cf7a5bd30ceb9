"""Attention over a cut sequence as one node of autograd: a forward and a backward, in each of which something travels.

B = microbatch, S = local positions, D, E = head sizes of keys and of values
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainsys.parallel.sequence import stay, travel_keys, travel_queries
from trainsys.parallel.sequence.packing import from_heads, to_heads
from trainsys.parallel.sequence.trip import Trip


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, there: Trip, back: Trip) -> Tensor:
        heads = k.shape[2]
        rows, keys, values = to_heads(q, heads), to_heads(k, heads).squeeze(1), to_heads(v, heads).squeeze(1)
        out, lse = _way(there).forward(there, rows, keys, values)
        out = out.to(q.dtype)
        ctx.back, ctx.heads = back, heads
        ctx.save_for_backward(rows, keys, values, out, lse)
        return from_heads(out, q.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        of_q, of_k, of_v = _way(ctx.back).backward(ctx.back, to_heads(grad, ctx.heads), q, k, v, out, lse)
        batch = grad.shape[0]
        of_k, of_v = (from_heads(t.to(k.dtype).unsqueeze(1), batch) for t in (of_k, of_v))
        return from_heads(of_q.to(q.dtype), batch), of_k, of_v, None, None


def _way(trip: Trip) -> Any:
    if trip.origins:
        return stay
    return travel_queries if trip.journey.queries else travel_keys


def attention(q: Tensor, k: Tensor, v: Tensor, there: Trip, back: Trip) -> Tensor:
    """Attention of this member's queries to everybody's keys.

    Args:
        q: [B, S, heads, D]; k: [B, S, kv_heads, D]; v: [B, S, kv_heads, E], of this member's positions.
        there, back: who travels in the forward and in the backward.

    Returns:
        [B, S, heads, E].

    Raises:
        CommError: naming the step and the rank that was waited for.
    """
    out: Tensor = _Attention.apply(q, k, v, there, back)  # type: ignore[no-untyped-call]
    return out
