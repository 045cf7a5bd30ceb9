"""What ranks do in the tests of attention over cut sequences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from trainsys.comm.group import Group
from trainsys.comm.wires import Wires
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.sequence.mask import Mask

PLAIN = Mask()


@dataclass(frozen=True)
class Case:
    method: str
    seq_len: int = 37
    heads: tuple[int, int] = (4, 2)
    sizes: tuple[int, int] = (8, 8)
    layout: str = "zigzag"
    mask: Mask = PLAIN
    dtype: torch.dtype = torch.float64
    canonical: bool = False
    wires: Wires | None = None


def visible(mask: Mask, seq_len: int) -> torch.Tensor:
    """[S, S], position by position, from the definition."""
    i = torch.arange(seq_len)
    seen = i[:, None] >= i if mask.causal else torch.ones(seq_len, seq_len, dtype=torch.bool)
    if mask.window:
        seen = seen & (i[:, None] - i < mask.window)
    document = torch.bucketize(i, torch.tensor(mask.documents, dtype=torch.int64), right=True)
    return seen & (document[:, None] == document)


def inputs(case: Case) -> list[torch.Tensor]:
    """q, k, v and the gradient of the output, of the whole sequence."""
    (heads, kv_heads), (size, value_size) = case.heads, case.sizes
    random = torch.Generator().manual_seed(1)
    shapes = ((heads, size), (kv_heads, size), (kv_heads, value_size), (heads, value_size))
    return [
        torch.randn(2, case.seq_len, *shape, generator=random, dtype=torch.float64).to(case.dtype) for shape in shapes
    ]


def dense(case: Case) -> list[torch.Tensor]:
    """The output and the three gradients, in float64."""
    q, k, v, grad = (t.double() for t in inputs(case))
    for t in (q, k, v):
        t.requires_grad_()
    out = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=visible(case.mask, case.seq_len), enable_gqa=True
    ).transpose(1, 2)
    out.backward(grad)
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [out.detach(), q.grad, k.grad, v.grad]


def attend(rank: int, world_size: int, store: Any, cases: list[Case]) -> list[tuple[list[float], list[torch.Tensor]]]:
    """Of each case, the greatest errors of out, dq, dk and dv, and these."""
    group, found = Group(store, "attend", range(world_size), rank, "gloo", 20.0), []
    for case in cases:
        cp = ContextParallel(
            group, range(world_size), case.seq_len, torch.device("cpu"), case.layout, case.wires, case.method,
            case.canonical,
        )  # fmt: skip
        own = [cp.rows.take(t, 1) for t in inputs(case)]
        q, k, v = (t.requires_grad_() for t in own[:3])
        out = CpAttention(cp, case.method, case.mask, case.canonical)(q, k, v)
        out.backward(own[3].flatten(2))
        assert q.grad is not None and k.grad is not None and v.grad is not None
        got = [out.detach().unflatten(2, own[3].shape[2:]), q.grad, k.grad, v.grad]
        wanted = [cp.rows.take(t, 1) for t in dense(case)]
        errors = [float((a - b).abs().max()) if a.numel() else 0.0 for a, b in zip(got, wanted, strict=True)]
        found.append((errors, got))
    group.close()
    return found
