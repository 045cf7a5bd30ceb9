"""Next-token cross entropy of one microbatch, also over logits sharded by vocabulary.

The scale is 1 / (tokens of the global batch): a constant of the run, so that losses and gradients of the microbatches
simply add up whatever the layout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainsys.parallel.tensor import TensorParallel, apply


def microbatch_loss(logits: Tensor, targets: Tensor, total_tokens: int, tp: TensorParallel | None) -> Tensor:
    """Summed cross entropy of one microbatch over the tokens of the whole step.

    Args:
        logits: [B, S, V], or [B, S, V/tp] under tensor parallelism.
        targets: int64 [B, S].
        total_tokens: tokens of the global batch.

    Returns:
        A scalar of the logits' dtype, fp32 at least.
    """
    if logits.dtype == torch.bfloat16:
        logits = logits.float()
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    if tp is None or tp.size == 1:
        total = F.cross_entropy(flat, wanted, reduction="sum")
    else:
        total = apply(_VocabParallelCrossEntropy, flat, wanted, tp)
    return total / total_tokens


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Cross entropy without gathering the logits (Shoeybi et al. 2019, §3: communicate b·s scalars, not b·s·v)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, tp: TensorParallel) -> Tensor:
        top = logits.max(dim=-1).values
        top = torch.stack(tp.all_gather(top)).amax(dim=0)
        local = targets - tp.index * logits.shape[-1]
        outside = (local < 0) | (local >= logits.shape[-1])
        local = local.masked_fill(outside, 0)
        shifted = logits - top.unsqueeze(-1)
        exp = shifted.exp()
        wanted = shifted.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(outside, 0.0)
        sums = tp.all_reduce(torch.stack([exp.sum(dim=-1), wanted]))
        ctx.save_for_backward(exp / sums[0].unsqueeze(-1), local, outside)
        return (sums[0].log() - sums[1]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        softmax, local, outside = ctx.saved_tensors
        one_hot = torch.zeros_like(softmax).scatter_(
            -1, local.unsqueeze(-1), (~outside).to(softmax.dtype).unsqueeze(-1)
        )
        return (softmax - one_hot) * grad, None, None
