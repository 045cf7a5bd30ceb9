"""Emulated compute: work that is done, and then waited beside until it has taken as long as it should."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

WIDTH = 16
_LATE_S = 3e-4  # by which a sleep may end late; the rest is spent looking at the clock


class Scale(nn.Module):
    """``x * w``: the least work that has an input gradient and a weight gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def total(out: Tensor, target: Tensor) -> Tensor:
    """The loss."""
    return out.sum()


def wait_until(end_s: float) -> None:
    """Return at `end_s` of ``time.perf_counter``."""
    left = end_s - time.perf_counter() - _LATE_S
    if left > 0:
        time.sleep(left)
    while time.perf_counter() < end_s:
        pass
