"""Seconds of a matrix product: tiles dealt out to the device's units in waves, or its bytes, whichever is longer.

A product [m, k] x [k, n] is cut into tiles; a wave is as many tiles as there are units, and one that begins is paid
whole (NVIDIA, "Matrix multiplication background", sections on tile and wave quantisation). Small tiles fit better and
reuse less. Rows whose length is no multiple of 16 bytes miss the tensor cores' fast path, and cost about twice.
"""

from __future__ import annotations

from functools import lru_cache

from trainsys.perf.device import Device
from trainsys.perf.job import Job

# tile [m, n] -> share of the large product's rate; from the reuse that CUTLASS's profiler shows of each
_TILES = (
    (256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.93), (64, 256, 0.9), (256, 64, 0.9),
    (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.65),
)  # fmt: skip
# bytes that divide a row -> share of the rate; the steps are NVIDIA's, the shares fitted on epoch a of bloom
_ALIGNED = ((128, 1.0), (32, 0.9), (16, 0.58), (0, 0.45))
_TILE_S = 1.2e-6  # filling and draining a tile's pipeline


@lru_cache(maxsize=65536)
def gemm_s(
    device: Device,
    m: int,
    n: int,
    k: int,
    precision: str,
    count: int = 1,
    row_bytes: int = 0,
    add_bytes: float = 0.0,
) -> float:
    """Seconds of `count` products [m, k] x [k, n] in one kernel.

    Args:
        row_bytes: of the shortest row that sets the alignment; 0: of n and k.
        add_bytes: more bytes per element of the result, as of a sum that it is added to.
    """
    rows = row_bytes or min(_divisor(2 * n), _divisor(2 * k))
    aligned = next(share for least, share in _ALIGNED if _divisor(rows) >= least)
    unit_flops = device.flops(precision) * aligned / device.units
    best = min(
        -(-(-(-m // tm) * -(-n // tn) * count) // device.units) * (2 * tm * tn * k / (unit_flops * share) + _TILE_S)
        for tm, tn, share in _TILES
    )
    width = 1 if precision in ("fp8", "mxfp8") else 2
    moved = count * (width * (m * k + k * n) + (2 + add_bytes) * m * n)
    return max(best + device.launch_s, device.stream_s(moved))


def weight_gradient_s(job: Job, n: int, k: int, precision: str) -> float:
    """Seconds of the gradient of a weight [n, k], and of adding it to the microbatches' sum.

    A separate kernel reads and writes the sum (``accumulate`` bytes per parameter); a fused one (Korthikanti et al.
    2022, arXiv:2205.05198, used Megatron's) does it while the product writes its result.
    """
    device, add = job.device, job.software.accumulate
    if job.software.fused_accumulate or not add:
        return gemm_s(device, n, k, job.tokens, precision, add_bytes=add)
    return gemm_s(device, n, k, job.tokens, precision) + device.stream_s(add * n * k)


def _divisor(num_bytes: int) -> int:
    """The largest power of two that divides it."""
    return num_bytes & -num_bytes
