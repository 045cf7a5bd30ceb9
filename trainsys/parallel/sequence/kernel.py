"""One block of attention with the logarithm of its sums, and its gradients: torch's own flash attention.

    N = microbatch · kv_heads, G = query heads per key head, Q, K = rows and keys, D, E = head sizes of keys and values

Queries of one key head are heads of a kernel's call, its keys the same memory for all of them: grouped queries cost no
copies. The kernels want D = E; the smaller one is padded with zeros here, and travels unpadded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainsys.sequence.mask import Kind

aten = torch.ops.aten


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, kind: Kind, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """[N, G, Q, D], [N, K, D], [N, K, E] -> out [N, G, Q, E], lse [N, G, Q].

    Args:
        visible: bool [Q, K] of a ``masked`` block; a row that sees nothing has out 0 and lse -inf.
    """
    size = v.shape[-1]
    q, k, v = _even(q, k, v)
    keys, values = (t.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for t in (k, v))
    bias = None if visible is None else _bias(visible, q)
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q, keys, values, 0.0, kind == "causal", attn_mask=bias, scale=scale
        )
    else:
        out, lse = _cuda_forward(q, keys, values, scale, kind, bias)
    if visible is not None:
        lse = lse.masked_fill(~visible.any(dim=-1), -torch.inf)
    return out[..., :size], lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kind: Kind,
    visible: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q [N, G, Q, D], k [N, K, D] and v [N, K, E] through this block.

    Args:
        grad: of the final output [N, G, Q, E].
        out, lse: final ones, over all keys, not of this block: then blocks add up.
    """
    sizes = q.shape[-1], v.shape[-1]
    q, k, v, grad, out = _even(q, k, v, grad, out)
    keys, values = (t.unsqueeze(1).expand(-1, q.shape[1], -1, -1) for t in (k, v))
    bias = None if visible is None else _bias(visible, q)
    if q.device.type == "cpu":
        of_q, of_k, of_v = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, keys, values, out, lse, 0.0, kind == "causal", attn_mask=bias, scale=scale
        )
    else:
        of_q, of_k, of_v = _cuda_backward(grad, q, keys, values, out, lse, scale, kind, bias)
    of_k, of_v = (t.squeeze(1) if t.shape[1] == 1 else t.sum(dim=1) for t in (of_k, of_v))
    return of_q[..., : sizes[0]], of_k[..., : sizes[0]], of_v[..., : sizes[1]]


def _even(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All with the same last size."""
    size = max(t.shape[-1] for t in tensors)
    return tuple(t if t.shape[-1] == size else F.pad(t, (0, size - t.shape[-1])) for t in tensors)


def _bias(visible: Tensor, like: Tensor) -> Tensor:
    return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, -torch.inf)


def _cuda_forward(q: Tensor, k: Tensor, v: Tensor, scale: float, kind: Kind, bias: Tensor | None) -> tuple[Any, Any]:
    """Flash attention in half precision; what that cannot do (float32, masks) by the memory-efficient kernel."""
    causal = kind == "causal"
    if bias is None and q.dtype in (torch.bfloat16, torch.float16):
        found = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
        return found[0], found[1]
    wide = None if bias is None else bias.expand(*q.shape[:2], -1, -1)
    found = aten._scaled_dot_product_efficient_attention(q, k, v, wide, True, 0.0, causal, scale=scale)
    return found[0], found[1][..., : q.shape[2]]


def _cuda_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kind: Kind,
    bias: Tensor | None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    causal, none = kind == "causal", torch.zeros((), dtype=torch.int64)
    if bias is None and q.dtype in (torch.bfloat16, torch.float16):
        lengths = q.shape[2], k.shape[2]
        found = aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse.contiguous(), None, None, *lengths, 0.0, causal, none, none, scale=scale
        )
    else:
        wide = None if bias is None else bias.expand(*q.shape[:2], -1, -1)
        padded = F.pad(lse, (0, -lse.shape[-1] % 32)).contiguous()  # the kernel reads it in rows of 32
        found = aten._scaled_dot_product_efficient_attention_backward(
            grad, q, k, v, wide, out, padded, none, none, 0.0, [True, True, True, False], causal, scale=scale
        )
    return found[0], found[1], found[2]
