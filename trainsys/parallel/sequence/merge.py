"""Partial results of attention, merged one after the other, and the gradients of their blocks.

Partial outputs are merged in float32 (or float64) by the logarithms of their sums (the form of flash attention, Dao et
al. 2022, arXiv:2205.14135, §3.1), ``lse' = log(e^lse + e^lse_b)``, ``out' = out + e^(lse_b - lse') (out_b - out)``:
nothing can overflow. The order is the caller's and never that of arrival.

    N = microbatch · kv_heads, G = query heads per key head, S = local queries
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainsys.parallel.sequence import kernel
from trainsys.sequence.mask import Call, Mask, calls


class Segment(NamedTuple):
    """Keys [N, K, D] and values [N, K, E] at `positions`."""

    positions: range
    k: Tensor
    v: Tensor


class Partial:
    """Attention of the local queries to all keys that it was shown.

    Args:
        q: [N, G, S, D], the runs of `positions` one after the other.
        size: of a value, E.
    """

    def __init__(self, q: Tensor, size: int, positions: tuple[range, ...], mask: Mask, scale: float) -> None:
        self.q, self.positions, self.mask, self.scale = q, positions, mask, scale
        kept = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.out = q.new_zeros((*q.shape[:3], size), dtype=kept)
        self.lse = q.new_full(q.shape[:3], -torch.inf, dtype=kept)

    def show(self, segments: Sequence[Segment]) -> None:
        """Merge in what these keys add."""
        for call in calls(self.positions, tuple(s.positions for s in segments), self.mask):
            k, v = _keys(call, segments)
            rows = slice(call.first, call.last)
            out, lse = kernel.forward(self.q[:, :, rows], k, v, self.scale, call.kind, visible(call, self.mask, k))
            merge(self.out[:, :, rows], self.lse[:, :, rows], out, lse)


def merge(out: Tensor, lse: Tensor, out_b: Tensor, lse_b: Tensor) -> None:
    """Merge a partial result ``_b`` in place into another of the same rows."""
    both = torch.logaddexp(lse, lse_b)
    share = torch.exp(lse_b - both).nan_to_num_(0.0)  # of rows that saw nothing on either side: nothing
    out.lerp_(out_b.to(out.dtype), share.unsqueeze(-1))
    lse.copy_(both)


def visible(call: Call, mask: Mask, like: Tensor) -> Tensor | None:
    """Of a ``masked`` call, which keys its rows see."""
    if call.runs is None:
        return None
    q, k = (torch.tensor(run, device=like.device) for run in call.runs)
    seen = k <= q[:, None]
    return seen & (k > q[:, None] - mask.window) if mask.window else seen


class Gradients:
    """Gradients of the local queries, and of all keys that it is shown.

    Args:
        q, out, lse: of the forward; `lse` may be -inf where a row saw nothing.
        grad: of out.
    """

    def __init__(
        self, grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, positions: tuple[range, ...], mask: Mask, scale: float
    ) -> None:
        self.q, self.grad, self.out, self.positions, self.mask, self.scale = q, grad, out, positions, mask, scale
        self.lse = lse.masked_fill(lse == -torch.inf, 0.0)
        self.of_q = torch.zeros_like(q, dtype=lse.dtype)

    def show(self, segments: Sequence[Segment], into: Sequence[Segment]) -> None:
        """Add the gradients of these keys and values to `into`, and those of the queries to `of_q`."""
        for call in calls(self.positions, tuple(s.positions for s in segments), self.mask):
            k, v = _keys(call, segments)
            rows = slice(call.first, call.last)
            of_q, of_k, of_v = kernel.backward(
                self.grad[:, :, rows], self.q[:, :, rows], k, v, self.out[:, :, rows],
                self.lse[:, :, rows].contiguous(), self.scale, call.kind, visible(call, self.mask, k),
            )  # fmt: skip
            self.of_q[:, :, rows] += of_q
            at = 0
            for segment, first, last in call.keys:
                taken = slice(at, at + last - first)
                into[segment].k[:, first:last] += of_k[:, taken]
                into[segment].v[:, first:last] += of_v[:, taken]
                at = taken.stop


def _keys(call: Call, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
    found = [(segments[i].k[:, a:b], segments[i].v[:, a:b]) for i, a, b in call.keys]
    if len(found) == 1:
        return found[0]
    return torch.cat([k for k, _ in found], dim=1), torch.cat([v for _, v in found], dim=1)
