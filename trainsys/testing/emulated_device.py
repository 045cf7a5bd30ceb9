"""An emulated device: matrix products take as long as its rate says, sleeping, and compute nothing.

Everything else is real: modules, autograd, messages and their order, the reduction, the optimizer. Ranks that sleep do
not disturb each other on a machine with fewer cores, so that a whole step can be timed on any machine; its numbers mean
nothing, as every product is zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class EmulatedDevice(TorchDispatchMode):
    """Within it this thread computes at `flops` per second.

    Multiplications and additions count as one FLOP each, and attention every pair of positions, as the planner counts.
    What the thread really computes in between (norms, additions of gradients) is taken off the sleep: a device's rate
    is that of a whole step.

    Attributes:
        asked_s: seconds that products take at that rate, so far.
    """

    def __init__(self, flops: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._flops, self._owed_s, self.asked_s = flops, 0.0, 0.0
        self._computed_s = 0.0  # this thread's time on the CPU at the last product

    def __enter__(self) -> EmulatedDevice:
        self._owed_s, self._computed_s = 0.0, time.thread_time()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        product = _PRODUCTS.get(func)
        if product is None:
            return func(*args, **(kwargs or {}))
        flops, out = product(*args)
        self._spend(flops / self._flops)
        return out

    def _spend(self, seconds: float) -> None:
        """Sleep; what a sleep takes too long is taken off the next."""
        self.asked_s += seconds
        computed_s = time.thread_time()
        self._owed_s += seconds - (computed_s - self._computed_s)
        self._computed_s = computed_s
        if self._owed_s > 0:
            start = time.perf_counter()
            time.sleep(self._owed_s)
            self._owed_s -= time.perf_counter() - start


def _mm(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    return 2.0 * a.shape[0] * a.shape[1] * b.shape[1], a.new_zeros(a.shape[0], b.shape[1])


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    return _mm(a, b)


def _bmm(a: Tensor, b: Tensor) -> tuple[float, Tensor]:
    flops = 2.0 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
    return flops, a.new_zeros(a.shape[0], a.shape[1], b.shape[2])


def _attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[float, tuple[Tensor, Tensor]]:
    """Flash attention on the CPU: [B, heads, S, head_dim] -> the same, and the logarithm of its sums."""
    return 4.0 * q.numel() * k.shape[2], (torch.zeros_like(q), q.new_zeros(q.shape[:3]))


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[float, tuple[Tensor, Tensor, Tensor]]:
    return 8.0 * q.numel() * k.shape[2], (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))


_PRODUCTS: dict[Any, Callable[..., tuple[float, Any]]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _bmm,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
