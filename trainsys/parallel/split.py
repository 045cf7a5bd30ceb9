"""Backward in two halves: I, the gradient of the input, and W, those of the weights, which nobody waits for.

Qi et al. 2023 (zero bubble, arXiv:2401.10241, §2). A linear's backward makes the gradient of its input and leaves its
own input and the gradient of its output behind; W multiplies the two. Everything else (norms, biases, embeddings, a
router's loss) is cheap and made in I. So the halves add up to the backward whatever the modules are: what a module
does not defer, autograd makes at once. Recomputation happens once, in I, and W needs no weights, so that under ZeRO-3
they are not gathered for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Waiting = tuple[nn.Parameter, Tensor, Tensor]  # a weight [O, D], its input [..., D], its output's gradient [..., O]
Made = Mapping[str, Tensor | None]  # parameter name -> its gradient of one microbatch, where there is one


class Deferred:
    """Products that wait for their W.

    Attributes:
        waiting: left behind since `take`, in the order of the backward.
    """

    def __init__(self) -> None:
        self.waiting: list[Waiting] = []

    def __deepcopy__(self, memo: Any) -> Deferred:
        return self  # copies of a module leave theirs in the same place

    def take(self) -> list[Waiting]:
        """What waits, which from now on is the caller's."""
        waiting, self.waiting = self.waiting, []
        return waiting


class Halves:
    """What I of one microbatch has left to W.

    Args:
        made: gradients that I made at once, by parameter name; None where it made none.
        waiting: the products.
    """

    def __init__(self, made: Made, waiting: list[Waiting]) -> None:
        self.made, self.waiting = dict(made), waiting

    def finish(self, params: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Multiply; what belongs to none of the part's names (an expert's twin) is left in its ``.grad``.

        Raises:
            RuntimeError: a parameter has no gradient, so that the step would be wrong.
        """
        name_of = {id(params[name]): name for name in self.made}
        while self.waiting:
            weight, x, grad = self.waiting.pop(0)
            value = grad.flatten(0, -2).t().mm(x.flatten(0, -2))  # as autograd multiplies, to the same bits
            name = name_of.get(id(weight))
            if name is None:
                weight.grad = value if weight.grad is None else weight.grad.add_(value)
            else:
                made = self.made[name]
                self.made[name] = value if made is None else made.add_(value)
        return complete(self.made)


def complete(made: Made) -> dict[str, Tensor]:
    """Every parameter's gradient of one microbatch. Raises RuntimeError if some parameter has none."""
    grads = {name: grad for name, grad in made.items() if grad is not None}
    if missing := sorted(made.keys() - grads.keys()):
        raise RuntimeError(
            f"the backward made no gradient for {', '.join(missing)}; freeze what the model does not use"
        )
    return grads


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, deferred: Deferred | None) -> Tensor:
    """``x @ weight.T + bias``, whose weight's gradient is left in `deferred`; None: an ordinary linear."""
    if deferred is None:
        return F.linear(x, weight, bias)
    result: Tensor = cast(Any, _SplitLinear).apply(x, weight, bias, deferred)
    return result


class _SplitLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: nn.Parameter, bias: Tensor | None, deferred: Deferred) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weight, ctx.deferred = weight, deferred
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.deferred.waiting.append((ctx.weight, x.detach(), grad.detach()))
        grad_x = grad.flatten(0, -2).mm(weight).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None


class SplitLinear(nn.Linear):
    """What an `nn.Linear` becomes in place."""

    deferred: Deferred | None = None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, self.deferred)


def split_backward(model: nn.Module, deferred: Deferred) -> None:
    """Let every linear of `model` leave its weight's gradient to W: torch's, and modules with a `deferred` to set."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = SplitLinear
        if hasattr(module, "deferred"):
            module.deferred = deferred  # type: ignore[assignment]
