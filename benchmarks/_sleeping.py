"""A module whose forward, input gradient and weight gradient sleep: the same one for our engine and for torch's."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

WIDTH = 16


class Sleeping(nn.Module):
    """``x * w``, of which F, I and W take `f_s`, `i_s` and `w_s` seconds; each gradient is a node of its own."""

    def __init__(self, f_s: float, i_s: float, w_s: float) -> None:
        super().__init__()
        self.seconds = f_s, i_s, w_s
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        f_s, i_s, w_s = self.seconds
        made: Tensor = _Sleep.apply(x, f_s, i_s) * _Sleep.apply(self.weight, 0.0, w_s)
        return made


class _Sleep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward_s: float, backward_s: float) -> Tensor:
        ctx.backward_s = backward_s
        _sleep(forward_s)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        _sleep(ctx.backward_s)
        return grad, None, None


def _sleep(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


def total(out: Tensor, target: Tensor) -> Tensor:
    """The loss."""
    return out.sum()
