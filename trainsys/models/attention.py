"""Causal attention over however many heads the rank holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int = 0) -> Tensor:
    """Softmax(q kᵀ / √head_dim) v without looking ahead (Vaswani et al. 2017, arXiv:1706.03762, §3.2.1).

    Args:
        q: [B, S, heads, head_dim], of the last S of K positions.
        k, v: [B, K, kv_heads, head_dim]; consecutive groups of heads / kv_heads query heads share one (grouped-query
            attention), so that equal contiguous shards of both keep their pairing.
        window: positions that each looks back at, its own among them (Beltagy et al. 2020, arXiv:2004.05150); 0: all.

    Returns:
        [B, S, heads · head_dim].
    """
    group = q.shape[2] // k.shape[2]
    if group > 1:
        k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if window:
        at = torch.arange(k.shape[2], device=q.device)
        back = at[-q.shape[2] :, None] - at
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back < window))
    elif q.shape[2] == k.shape[2]:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        from torch.nn.attention.bias import causal_lower_right  # 0.4 s: only who cuts sequences needs it

        out = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]))
    return out.transpose(1, 2).flatten(2)
