"""What one device does: matrix products by size, memory bandwidth, the cost of a launch, and of a layer of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from trainsys.config import ModelConfig, RunConfig
from trainsys.models.geometry import forward_flops, resolve
from trainsys.models.registry import build

SIZES = (128, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
_COPY_MIB = (64, 1024)  # on a CPU, on anything else
_PINNED_MIB = 256


@dataclass(frozen=True)
class Compute:
    """Of one device while the others idle.

    Attributes:
        gemm: (n, TFLOP/s) of products of square matrices [n, n].
        memory_gbps: bytes read and written by copying tensors far larger than a cache, GB/s.
        launch_s: of the smallest operation, one after the other.
        efficiency: share of the best product's rate in forward and backward of one layer of the given model.
        host_gbps: between pinned memory of the host and the device's, the slower way, GB/s; 0: it has none of its own.
    """

    gemm: tuple[tuple[int, float], ...]
    memory_gbps: float
    launch_s: float
    efficiency: float
    host_gbps: float = 0.0

    @property
    def tflops(self) -> float:
        """The best product's."""
        return max(rate for _, rate in self.gemm)


def best_s(action: Callable[[], object], sync: Callable[[], None], budget_s: float, least: int = 3) -> float:
    """Least seconds of `action` over as many repetitions as the budget allows, after one that is not counted."""
    action()
    sync()
    best, count, deadline = float("inf"), 0, perf_counter() + budget_s
    while count < least or perf_counter() < deadline:
        start = perf_counter()
        action()
        sync()
        best, count = min(best, perf_counter() - start), count + 1
    return best


def measure_compute(config: RunConfig, device: torch.device, budget_s: float) -> Compute:
    """All of `Compute`, in about `budget_s` seconds; on a CPU it takes the sizes that fit into it."""
    sync: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    dtype = getattr(torch, config.train.dtype)
    gemm: list[tuple[int, float]] = []
    deadline = perf_counter() + budget_s / 2
    for n in SIZES:
        if gemm and perf_counter() + 4 * 2 * n**3 / (gemm[-1][1] * 1e12) > deadline:
            break  # warm-up and three repetitions would not end in time
        a = torch.full((n, n), 0.5, dtype=dtype, device=device)
        out = torch.empty_like(a)
        seconds = best_s(lambda a=a, out=out: torch.mm(a, a, out=out), sync, budget_s / 2 / len(SIZES))  # type: ignore[misc]
        gemm.append((n, 2 * n**3 / seconds / 1e12))
    source = torch.ones(_COPY_MIB[device.type == "cuda"] << 18, device=device)
    target = torch.empty_like(source)
    copied = best_s(lambda: target.copy_(source), sync, budget_s / 8)
    one = torch.ones(1, device=device)
    best = max(rate for _, rate in gemm)
    return Compute(
        tuple(gemm),
        memory_gbps=2 * source.nbytes / copied / 1e9,
        launch_s=_launch_s(one, sync, budget_s / 16),
        efficiency=min(1.0, _layer_tflops(config, device, sync, budget_s / 4) / best),
        host_gbps=_host_gbps(device, sync, budget_s / 16),
    )


def _host_gbps(device: torch.device, sync: Callable[[], None], budget_s: float) -> float:
    """Copies of pinned memory, which the device fetches and brings by itself; the slower of both ways."""
    if device.type != "cuda":
        return 0.0
    host = torch.ones(_PINNED_MIB << 18, pin_memory=True)
    own = torch.empty(host.shape, device=device)
    ways = (lambda: own.copy_(host, non_blocking=True), lambda: host.copy_(own, non_blocking=True))
    return host.nbytes / max(best_s(way, sync, budget_s / 2) for way in ways) / 1e9


def _launch_s(one: torch.Tensor, sync: Callable[[], None], budget_s: float) -> float:
    times = 100

    def chain() -> None:
        for _ in range(times):
            one.add_(1.0)

    return best_s(chain, sync, budget_s) / times


def _layer_tflops(config: RunConfig, device: torch.device, sync: Callable[[], None], budget_s: float) -> float:
    """TFLOP/s of forward and backward of a model of one layer, all of it counted as `planner.compute` does."""
    model: ModelConfig = dataclasses.replace(resolve(config.model), num_layers=1, vocab_parts=1)
    module = build(model, range(-1, 2)).to(device=device, dtype=getattr(torch, config.train.dtype))
    size, length = config.batch.microbatch_size, config.batch.seq_len
    module.keys.begin(config.train.seed, 0, range(size))
    tokens = torch.zeros(size, length, dtype=torch.int64, device=device)
    seconds = best_s(lambda: module(tokens).sum().backward(), sync, budget_s)
    flops = sum(forward_flops(model, block, length) for block in range(-1, 2)) * size * length
    return 3 * flops / seconds / 1e12
