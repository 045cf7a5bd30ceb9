"""One step of causal attention to 131,072 positions over 8 ranks of this machine, and on one, in time and memory.

Memory is what a process has resident at most beyond what it had before its tensors came: inputs, results and gradients
count. Blocks from 64 KiB on are given back when freed, so that what is counted is what lives.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.group import Group
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.testing import RankPool

LENGTH, RANKS, HEADS, KV_HEADS, DIM = 131_072, 8, 2, 1, 32
_GRAIN = 1024  # positions whose numbers come from one seed
_MMAP_THRESHOLD = -3  # of mallopt(3)


def row(method: str, length: int = LENGTH, ranks: int = RANKS) -> dict[str, Any]:
    """Both runs, and how far apart their results are."""
    found = {}
    for n in (ranks, 1):
        pool = RankPool()
        try:
            found[n] = pool.run(body, n, method, length, timeout_s=900)
        finally:
            pool.close()
    whole = found[1][0]
    several = found[ranks]
    sums = [sum(one["sums"][i] for one in several) for i in range(4)]
    return {
        "method": method,
        "length": length,
        "ranks": ranks,
        "seconds": max(one["seconds"] for one in several),
        "one_rank_s": whole["seconds"],
        "peak_bytes": max(one["peak_bytes"] for one in several),
        "one_rank_bytes": whole["peak_bytes"],
        "part": max(one["peak_bytes"] for one in several) / whole["peak_bytes"],
        "apart": max(abs(a / b - 1) for a, b in zip(sums, whole["sums"], strict=True)),
    }


def body(rank: int, world_size: int, store: Any, method: str, length: int) -> dict[str, Any]:
    """One rank: seconds, greatest memory, and sums of squares of out, dq, dk and dv."""
    ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(1 if world_size > 1 else 2)
    group = Group(store, "long", range(world_size), rank, "gloo", 600.0)
    cp = ContextParallel(group, group.ranks, length, torch.device("cpu"), canonical=False)
    _step(cp, method, 2 * world_size)  # what is needed once
    cp = ContextParallel(group, group.ranks, length, torch.device("cpu"), canonical=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    group.backend.barrier().wait()
    start = time.perf_counter()
    results = _step(cp, method, length)
    seconds = time.perf_counter() - start
    peak = _resident("VmHWM") - before
    sums = [float(t.double().square().sum()) for t in results]
    group.close()
    return {"seconds": seconds, "peak_bytes": peak, "sums": sums}


def _step(cp: ContextParallel, method: str, length: int) -> list[Tensor]:
    if length != cp.seq_len:
        cp = ContextParallel(cp.group, cp.members, length, torch.device("cpu"), canonical=False)
    q, k, v, grad = (_rows(cp, heads, seed) for seed, heads in enumerate((HEADS, KV_HEADS, KV_HEADS, HEADS)))
    for t in (q, k, v):
        t.requires_grad_()
    out = CpAttention(cp, method, canonical=False)(q, k, v)
    out.backward(grad.flatten(2))
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [out.detach(), q.grad, k.grad, v.grad]


def _rows(cp: ContextParallel, heads: int, seed: int) -> Tensor:
    """This rank's positions of a tensor [1, S, heads, D] of which no rank has all."""
    runs = cp.layout[cp.index]
    found, at = torch.empty(1, sum(map(len, runs)), heads, DIM), 0
    for run in runs:
        for first in range(run.start, run.stop, _GRAIN):
            grain = first // _GRAIN * _GRAIN
            random = torch.Generator().manual_seed(grain * 8 + seed)
            stop = min(first + _GRAIN - first % _GRAIN, run.stop)
            numbers = torch.randn(_GRAIN, heads, DIM, generator=random)[first - grain : stop - grain]
            found[0, at : at + len(numbers)] = numbers
            at += len(numbers)
    return found


def _resident(what: str) -> int:
    """Bytes of this process, by the kernel's count."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024
