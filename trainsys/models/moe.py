"""A mixture of experts: a router sends each token to k feed-forwards and adds what they answer.

Shazeer et al. 2017 (arXiv:1701.06538), without capacities: no token is dropped. Its bits depend on its inputs alone:
ties go to the lower expert, each expert takes its tokens in their order, a token's k answers are added in order of k.

    B = microbatch, S = sequence, N = B · S tokens, E = experts, k = experts per token, rows = N · k
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainsys.config import ModelConfig
from trainsys.models.llama import FeedForward


class Experts(nn.ModuleDict):
    """The experts by number. A runtime may leave some out and replace `forward` by one that asks who has them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__({str(e): FeedForward(config, config.expert_ffn_dim) for e in range(config.num_experts)})

    def forward(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Rows [rows, dim], first the ``counts[0]`` of expert 0, then those of 1 … -> answers [rows, dim].

        Every expert runs, if need be on nothing, so that each has a gradient.
        """
        parts = rows.split(list(counts))
        return torch.cat([expert(part) for expert, part in zip(self.values(), parts, strict=True)])


class MoE(nn.Module):
    """[B, S, dim] -> [B, S, dim].

    Attributes:
        aux_scale: what the load-balance loss is multiplied by before its gradient is added. The coefficient; a runtime
            divides it by the microbatches of a step.
        counted: numbers of choices and tokens here -> of the whole microbatch; a runtime that cuts sequences adds up.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.experts_per_token, self.router_norm = config.experts_per_token, config.router_norm
        self.aux_scale = config.router_aux_coef
        self.counted: Callable[[Tensor], Tensor] = lambda numbers: numbers
        self.router = nn.Linear(config.dim, config.num_experts, bias=False)
        self.experts = Experts(config)
        if config.shared_ffn_dim:
            self.shared: nn.Module | None = FeedForward(config, config.shared_ffn_dim)
            self.shared_gate: nn.Module | None = nn.Linear(config.dim, 1, bias=False)
        else:
            self.shared = self.shared_gate = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        probs, weights, chosen = route(self.router(tokens), self.experts_per_token, self.router_norm)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=probs.shape[1])
        # Token rows k times, then a permutation: each gradient row has one source, so nothing is added in random order.
        rows = tokens.unsqueeze(1).expand(-1, self.experts_per_token, -1).flatten(0, 1).index_select(0, order)
        answers = self.experts(rows, counts.tolist()).index_select(0, order.argsort())
        out = combine(answers.unflatten(0, chosen.shape), weights.to(x.dtype))
        if self.shared is not None and self.shared_gate is not None:
            out = out + self.shared_gate(tokens).sigmoid() * self.shared(tokens)
        if self.aux_scale:
            out = add_gradient_of(out, load_balance_loss(probs, chosen, self.counted) * self.aux_scale)
        return out.view_as(x)


def route(logits: Tensor, k: int, norm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Who answers which token.

    Args:
        logits: [N, E].
        norm: rescale a token's k weights to add up to 1.

    Returns:
        All probabilities [N, E], in float32 at least; the k largest [N, k] in descending order; their experts [N, k].
    """
    probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    top, chosen = (t[:, :k] for t in probs.sort(dim=-1, descending=True, stable=True))
    return probs, top / top.sum(dim=-1, keepdim=True) if norm else top, chosen


def combine(answers: Tensor, weights: Tensor) -> Tensor:
    """Answers [N, k, dim], weights [N, k] -> weighted sum [N, dim], added in order of k."""
    weighted = answers * weights.unsqueeze(-1)
    out = weighted[:, 0]
    for i in range(1, weighted.shape[1]):
        out = out + weighted[:, i]
    return out


def load_balance_loss(
    probs: Tensor, chosen: Tensor, counted: Callable[[Tensor], Tensor] = lambda numbers: numbers
) -> Tensor:
    """E · Σ_e (choices of expert e per token) · (mean probability of e); k when both are even.

    Fedus et al. 2021 (Switch, arXiv:2101.03961), eq. 4-6, for k choices per token as in Mixtral's published training
    code. `probs` is [N, E], `chosen` int64 [N, k]. Where these are some tokens of many, `counted` makes int64 [E + 1],
    choices and tokens, those of all, and the parts' losses add up to the loss.
    """
    numbers = torch.bincount(chosen.flatten(), minlength=probs.shape[1])
    numbers = counted(torch.cat((numbers, numbers.new_tensor([len(probs)]))))
    count, tokens = numbers[:-1].to(probs.dtype), int(numbers[-1])
    share = probs.sum(dim=0) / tokens  # of one token's probability, over all tokens
    return (count * share).sum() * (probs.shape[1] / tokens)


class _AddGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.like = (loss.dtype, loss.device)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        dtype, device = ctx.like
        return grad, torch.ones((), dtype=dtype, device=device)


def add_gradient_of(x: Tensor, loss: Tensor) -> Tensor:
    """`x` itself; when something is differentiated through it, the gradient of the scalar `loss` is added.

    So a layer has a loss of its own wherever the pipeline is cut, and the reported loss stays the cross entropy.
    """
    return cast(Tensor, cast(Any, _AddGradient).apply(x, loss))
