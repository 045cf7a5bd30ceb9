"""Emulated compute: a stage whose forward and backward sleep.

Two cores cannot show what a schedule does to real compute; sleeping stages overlap truly, so the executor, the
communication and the simulator can be held against each other on any machine. Messages are real, of a chosen size.
"""

from __future__ import annotations

import time
from concurrent.futures import Future

import torch
from torch import Tensor

from trainsys.parallel.kept import Copier


class EmulatedStage:
    """A `Runner` that takes `f_s`, and `b_s` or `i_s` and `w_s`, seconds per microbatch.

    Args:
        first, last: position in the pipeline; ends neither receive nor send beyond themselves.
        shape: of the message between stages.
        copy_s: seconds of a copy of what one microbatch keeps, to the host or back.
        copier: of the lane, all of whose stages share it.
    """

    def __init__(
        self, f_s: float, b_s: float, first: bool, last: bool, shape: tuple[int, ...] = (1, 16, 16),
        i_s: float | None = None, w_s: float | None = None, copy_s: float = 0.0, copier: Copier | None = None,
    ) -> None:  # fmt: skip
        self.f_s, self.b_s, self.first, self.last, self.shape = f_s, b_s, first, last, shape
        self.i_s = b_s / 2 if i_s is None else i_s
        self.w_s = b_s - self.i_s if w_s is None else w_s
        self.copy_s, self._copier = copy_s, copier
        self._copying: dict[int, Future[None]] = {}

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        time.sleep(self.f_s)
        return None if self.last else self.boundary(microbatch)

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        self._arrive(microbatch)
        time.sleep(self.b_s)
        return None if self.first else self.boundary(microbatch)

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        self._arrive(microbatch)
        time.sleep(self.i_s)
        return None if self.first else self.boundary(microbatch)

    def backward_weight(self, microbatch: int) -> None:
        time.sleep(self.w_s)

    def recompute(self, microbatch: int) -> None:
        self._arrive(microbatch)
        time.sleep(self.f_s)

    def offload(self, microbatch: int) -> None:
        assert self._copier is not None
        self._copying[microbatch] = self._copier.out(lambda: time.sleep(self.copy_s))

    def reload(self, microbatch: int) -> None:
        assert self._copier is not None
        self._copying[microbatch] = self._copier.back(lambda: time.sleep(self.copy_s), self._copying[microbatch])

    def _arrive(self, microbatch: int) -> None:
        if microbatch in self._copying:
            self._copying.pop(microbatch).result()

    def boundary(self, microbatch: int) -> Tensor:
        return torch.zeros(self.shape)
