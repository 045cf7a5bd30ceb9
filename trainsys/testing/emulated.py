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
from trainsys.parallel.vocabulary import STATISTICS


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
        return torch.zeros(self.shape, dtype=torch.float64)


class EmulatedVocabulary:
    """The `Parts` of one lane that take `s_s` and `t_s` seconds per microbatch; lookups take none.

    Args:
        shape: of the message between stages, [B, S, D].
        nodes: of the lane's parts in the tree over all.
    """

    dtype = torch.float32

    def __init__(self, s_s: float, t_s: float, one_barrier: bool, shape: tuple[int, int, int], nodes: int = 1) -> None:
        self.s_s, self.t_s, self.one_barrier, self.shape, self.nodes = (s_s, t_s, one_barrier, torch.Size(shape), nodes)
        self.dim, self.width = shape[-1], STATISTICS + 2 * shape[-1] * one_barrier

    def tokens(self, microbatch: int) -> Tensor:
        return torch.zeros(self.shape[:-1], dtype=torch.int64)

    def lookup(self, microbatch: int) -> Tensor:
        return torch.zeros(self.shape)

    def lookup_backward(self, microbatch: int, grad: Tensor) -> None:
        pass

    def score(self, microbatch: int, x: Tensor) -> list[Tensor]:
        time.sleep(self.s_s)
        return [torch.ones(self.shape[:-1].numel(), self.width)] * self.nodes

    def finish(self, microbatch: int, whole: Tensor) -> list[Tensor]:
        time.sleep(self.t_s)
        return [torch.zeros(self.shape[:-1].numel(), self.dim)] * self.nodes

    def conclude(self, microbatch: int, whole: Tensor, of_x: Tensor | None) -> Tensor:
        return torch.zeros(self.shape)
