"""How fast one rank computes: declared in the cluster file, or measured with one matrix product."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter, process_time

from trainsys.config import ClusterConfig

_SIZE = 384  # rows of the measured product: large enough for the BLAS kernel, small enough for a core's cache
_BUDGET_S = 0.12


@dataclass(frozen=True)
class Rate:
    """FLOP/s of one rank.

    Attributes:
        peak_flops: what MFU is measured against.
        flops: what a training step is expected to reach, peak · ``device.efficiency``.
        source: where the peak comes from, for the reader of a plan.
        cores: that all ranks share; 0 when each has its own device.
        alone_flops: what a step reaches while at most `cores` ranks compute; `flops` is for all ranks at once.
    """

    peak_flops: float
    flops: float
    source: str
    cores: int = 0
    alone_flops: float = 0.0

    def sustained(self, busy_ranks: float) -> float:
        """FLOP/s of each rank while `busy_ranks` of them compute: on shared cores an idle rank speeds up the others."""
        return self.alone_flops / max(1.0, busy_ranks / self.cores) if self.cores else self.flops


def rate(cluster: ClusterConfig, num_ranks: int) -> Rate:
    """Rate of each of `num_ranks` ranks of `cluster`. With ``shared_cores`` they divide this machine's cores.

    Raises:
        ValueError: for a negative ``device.tflops`` or an efficiency outside (0, 1].
    """
    device = cluster.device
    if device.tflops < 0:
        raise ValueError(f"cluster.device.tflops={device.tflops:g} must be positive, or 0 to measure this machine")
    if not 0 < device.efficiency <= 1:
        raise ValueError(f"cluster.device.efficiency={device.efficiency:g} must lie in (0, 1]")
    if device.tflops:
        peak, source = device.tflops * 1e12, f"declared {_flops(device.tflops * 1e12)}"
    else:
        peak = gemm_flops()
        source = f"measured {_flops(peak)} on this machine"
    for other in cluster.other_devices:
        source += f"; {other.device.name} {_flops(other.device.tflops * 1e12) if other.device.tflops else 'the same'}"
    if not cluster.shared_cores:
        return Rate(peak, peak * device.efficiency, source)
    cores = os.cpu_count() or 1
    share = peak / max(1.0, num_ranks / cores)
    source += f", shared by {num_ranks} rank{'s'[: num_ranks != 1]} on {cores} core{'s'[: cores != 1]}"
    return Rate(share, share * device.efficiency, source, cores, peak * device.efficiency)


@lru_cache(maxsize=1)
def gemm_flops() -> float:
    """Best FLOP/s of one core in a float32 matrix product with numpy; takes about 0.15 s, once per process.

    Divides by CPU time, not wall time: the result is per core whatever number of threads BLAS starts, and other
    processes on the machine do not lower it.
    """
    import numpy as np

    a = np.full((_SIZE, _SIZE), 0.5, dtype=np.float32)
    out = np.empty_like(a)
    np.matmul(a, a, out=out)  # the first product starts BLAS
    best, deadline = float("inf"), perf_counter() + _BUDGET_S
    while perf_counter() < deadline:
        start = process_time()
        np.matmul(a, a, out=out)
        best = min(best, process_time() - start)
    return 2.0 * _SIZE**3 / best


def _flops(value: float) -> str:
    return f"{value / 1e12:g} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.0f} GFLOP/s"
