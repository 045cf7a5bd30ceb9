"""What ranks do in `trainsys bench attention`: one cell after the other, over one group that stays connected."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.comm.wires import Wires
from trainsys.parallel.sequence import kernel
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.sequence.mask import Mask

DIM = 64
Span = tuple[float, float, float]  # begin, end of the forward, end of the backward
Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # local q, k, v [1, S_i, heads, D] -> out [1, S_i, heads · D]


@dataclass(frozen=True, eq=False)
class Cell:
    """One case: on some wires, attention of `heads` query and `kv_heads` key heads to `seq_len` positions."""

    topology: str
    wires: Wires
    heads: int
    kv_heads: int
    seq_len: int
    mask_name: str
    mask: Mask


@dataclass(eq=False)
class Home:
    """What a rank keeps between calls."""

    store: Any = None
    group: Group | None = None
    cell: Cell | None = None
    whole: list[Tensor] = field(default_factory=list)  # q, k, v and the gradient of out, of all positions
    wanted: list[Tensor] = field(default_factory=list)  # out and the gradients, float64
    runs: dict[str, tuple[ContextParallel, Run]] = field(default_factory=dict)


HOME = Home()


def visible(mask: Mask, seq_len: int) -> Tensor:
    """bool [S, S], position by position, from the definition."""
    i = torch.arange(seq_len)
    document = torch.bucketize(i, torch.tensor(mask.documents, dtype=torch.int64), right=True)
    return (i[:, None] >= i) & (document[:, None] == document)


def inputs(heads: int, kv_heads: int, seq_len: int) -> list[Tensor]:
    """q, k, v and the gradient of out, [1, S, heads, D]."""
    random = torch.Generator().manual_seed(seq_len)
    return [torch.randn(1, seq_len, h, DIM, generator=random) for h in (heads, kv_heads, kv_heads, heads)]


def dense(heads: int, kv_heads: int, seq_len: int, mask: Mask, dtype: torch.dtype) -> list[Tensor]:
    """Output and three gradients by torch's own attention to the whole sequence."""
    q, k, v, grad = (t.to(dtype) for t in inputs(heads, kv_heads, seq_len))
    for t in (q, k, v):
        t.requires_grad_()
    flat = [t.transpose(1, 2) for t in (q, k, v)]
    out = F.scaled_dot_product_attention(*flat, attn_mask=visible(mask, seq_len), enable_gqa=True).transpose(1, 2)
    out.backward(grad)
    assert q.grad is not None and k.grad is not None and v.grad is not None
    return [out.detach(), q.grad, k.grad, v.grad]


def errors(found: Sequence[Tensor], wanted: Sequence[Tensor], scales: Sequence[float]) -> list[float]:
    """Greatest differences over the greatest number of the whole tensor."""
    pairs = zip(found, wanted, scales, strict=True)
    return [float((a.double() - b).abs().max()) / scale if a.numel() else 0.0 for a, b, scale in pairs]


def connect(rank: int, world_size: int, store: Any) -> None:
    HOME.store = store
    HOME.group = Group(store, "attention", range(world_size), rank, "gloo", 60.0)
    HOME.group.backend.barrier().wait()


def calibrate(rank: int, world_size: int, store: Any) -> dict[str, list[float]]:
    """Under the load of all ranks, of some rounds: calls per second of the kernel forward and backward, with 512 rows
    and keys of 8 heads, and forward with few; seconds of a message."""
    group = HOME.group
    assert group is not None
    big, small = _Calls(512), _Calls(16)
    calls = {"forward": big.forward, "backward": big.backward, "small": small.forward}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(5):
        for name, call in calls.items():
            group.backend.barrier().wait()
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < 0.1:
                call()
                count += 1
            found[name].append(count / (time.perf_counter() - start))
    return {**found, "message_s": [_message_s(group)]}


class _Calls:
    """The kernel's calls with so many rows and keys, of 8 heads."""

    def __init__(self, length: int) -> None:
        self.q, self.grad = torch.randn(2, 8, 1, length, DIM)
        self.k, self.v = torch.randn(2, 8, length, DIM)
        self.out, self.lse = self.forward()

    def forward(self) -> tuple[Tensor, Tensor]:
        return kernel.forward(self.q, self.k, self.v, DIM**-0.5, "full", None)

    def backward(self) -> None:
        kernel.backward(self.grad, self.q, self.k, self.v, self.out, self.lse, DIM**-0.5, "full", None)


def _message_s(group: Group) -> float:
    """Of the least of some rounds in which everybody sends everybody a little."""
    here, tag, best = torch.zeros(256), 1 << 28, float("inf")
    into = {peer: torch.zeros(256) for peer in group.ranks if peer != group.rank}
    for _ in range(30):
        group.backend.barrier().wait()
        start = time.perf_counter()
        exchange(group, [(peer, here, tag) for peer in into], [(peer, t, tag) for peer, t in into.items()])
        best = min(best, time.perf_counter() - start)
    return best


def enter(rank: int, world_size: int, store: Any, cell: Cell, reference: str) -> None:
    """Make ready for a cell; `reference` is the file with what is right."""
    HOME.cell, HOME.runs = cell, {}
    HOME.whole = inputs(cell.heads, cell.kv_heads, cell.seq_len)
    HOME.wanted = torch.load(reference, mmap=True)


def run_of(method: str) -> tuple[ContextParallel, Run]:
    """How ``method`` or ``method:layout`` attends, and who has which positions."""
    if method not in HOME.runs:
        cell, group = HOME.cell, HOME.group
        assert cell is not None and group is not None
        if method.startswith("peer:"):
            from benchmarks._attention_peers import peer

            HOME.runs[method] = peer(method, cell, group)
        else:
            name, _, layout = method.partition(":")
            cp = context(cell, group, layout or "zigzag")
            HOME.runs[method] = cp, CpAttention(cp, name, cell.mask, canonical=False)
    return HOME.runs[method]


def context(cell: Cell, group: Group, layout: str) -> ContextParallel:
    return ContextParallel(
        group, group.ranks, cell.seq_len, torch.device("cpu"), layout, cell.wires, canonical=False
    )  # fmt: skip


def measure(
    rank: int, world_size: int, store: Any, methods: Sequence[str], repeats: int, check: bool
) -> dict[str, tuple[list[Span], list[float]]]:
    """The spans of each method's repetitions, all in turn, and if `check` its errors of out, dq, dk and dv."""
    found: dict[str, tuple[list[Span], list[float]]] = {method: ([], []) for method in methods}
    group = HOME.group
    assert group is not None
    for _ in range(repeats):
        for method in methods:
            cp, attend = run_of(method)
            q, k, v, grad = (cp.rows.take(t, 1) for t in HOME.whole)
            for t in (q, k, v):
                t.requires_grad_()
            if isinstance(attend, CpAttention):
                attend.prepare(q, k, v)
            group.backend.barrier().wait()
            start = time.perf_counter()
            out = attend(q, k, v)
            middle = time.perf_counter()
            out.backward(grad.flatten(2))
            found[method][0].append((start, middle, time.perf_counter()))
            if check:
                assert q.grad is not None and k.grad is not None and v.grad is not None
                got = [out.detach().unflatten(2, grad.shape[2:]), q.grad, k.grad, v.grad]
                wanted = [cp.rows.take(t, 1) for t in HOME.wanted]
                scales = [float(t.abs().max()) for t in HOME.wanted]
                found[method][1][:] = errors(got, wanted, scales)
    return found
