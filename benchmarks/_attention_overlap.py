"""How much of its communication an attention hides behind computation, on wires.

Two cores cannot compute for all ranks and carry their messages at once, so computation is EMULATED here: a kernel's
call sleeps for as long as its products would take a device, and its results are zeros. Messages, wires and threads are
real.

The rate of the device is set so that computation takes `COMPUTE` times what communication alone does. The hidden part
is ``1 - (T_both - T_compute) / T_messages``, each the time of the slowest rank.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks._attention_body import DIM, HOME, context
from benchmarks._attention_cells import MASKS, Cell, connect, wires_of, with_payload
from trainsys.comm.wires import Wires, mesh
from trainsys.parallel.sequence import kernel
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.testing.wires_lab import WiresLab

METHODS = ("ring", "sliced", "tasp")
COMPUTE = 1.25  # of the time of the messages alone
HIDDEN = 0.9  # the bar

SLEPT = {"forward": 0.0, "backward": 0.0}


def rows(told: Any, repeats: int, methods: tuple[str, ...] = METHODS) -> list[dict[str, Any]]:
    """A row for each of some wires, methods and directions."""
    found = []
    for name, wires, length in (("mesh4", wires_of("mesh4"), 1024), ("mesh8", mesh(8, 0.005), 2048)):
        with WiresLab(wires) as lab:
            lab.run(connect)
            for method in methods:
                now = _of_method(lab, name, with_payload(wires, lab.payload), length, method, repeats)
                found += now
                told.print(", ".join(f"{name} {method} {row['direction']}: {row['hidden']:.1%} hidden" for row in now))
    return found


def _of_method(lab: Any, name: str, wires: Wires, length: int, method: str, repeats: int) -> list[dict[str, Any]]:
    cell = Cell(name, wires, 8, 8, length, "causal", MASKS["causal"](length))
    alone = _least(lab.run(body, cell, method, (0.0, 0.0), repeats))
    flops = 2.0 * 8 * length * length / 2 * 2 * DIM / wires.num_ranks  # of a rank, about
    pace = (COMPUTE * alone["forward_s"] / flops, COMPUTE * alone["backward_s"] / flops)
    both = _least(lab.run(body, cell, method, pace, repeats))
    found = []
    for direction in ("forward", "backward", "both"):
        halves = ("forward", "backward") if direction == "both" else (direction,)
        total, messages, compute = (
            sum(of[f"{half}_{key}"] for half in halves) for of, key in ((both, "s"), (alone, "s"), (both, "slept_s"))
        )
        found.append(
            {
                "topology": name,
                "n": wires.num_ranks,
                "method": method,
                "direction": direction,
                "seconds": total,
                "messages_s": messages,
                "compute_s": compute,
                "hidden": 1 - (total - compute) / messages,
            }
        )
    return found


def _least(results: list[list[dict[str, float]]]) -> dict[str, float]:
    """Of the repetition with the least of both halves, the slowest rank's times."""
    turns = [{key: max(one[key] for one in turn) for key in turn[0]} for turn in zip(*results, strict=True)]
    return min(turns, key=lambda turn: turn["forward_s"] + turn["backward_s"])


def body(
    rank: int, world_size: int, store: Any, cell: Cell, method: str, pace: tuple[float, float], repeats: int
) -> list[dict[str, float]]:
    """One rank; `pace` is seconds per product forward, and backward."""
    group = HOME.group
    assert group is not None
    real = kernel.forward, kernel.backward
    kernel.forward, kernel.backward = _stand_ins(*pace)  # type: ignore[assignment]
    cp, found = context(cell, group, "zigzag"), []
    attend = CpAttention(cp, method, cell.mask, canonical=False)
    here = len(cp.rows.which)
    try:
        for _ in range(repeats + 1):
            q, k, v = (
                torch.zeros(1, here, h, DIM, requires_grad=True) for h in (cell.heads, cell.kv_heads, cell.kv_heads)
            )
            SLEPT.update(forward=0.0, backward=0.0)
            group.backend.barrier().wait()
            start = time.perf_counter()
            out = attend(q, k, v)
            forward_s = time.perf_counter() - start
            group.backend.barrier().wait()
            start = time.perf_counter()
            out.sum().backward()
            backward_s = time.perf_counter() - start
            found.append(
                {
                    "forward_s": forward_s, "backward_s": backward_s,
                    "forward_slept_s": SLEPT["forward"], "backward_slept_s": SLEPT["backward"],
                }
            )  # fmt: skip
    finally:
        kernel.forward, kernel.backward = real
    return found[1:]


def _stand_ins(forward_pace: float, backward_pace: float) -> tuple[Any, Any]:
    def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, kind: str, visible: Any) -> tuple[Tensor, Tensor]:
        _sleep("forward", forward_pace, q, k, kind)
        return q.new_zeros((*q.shape[:-1], v.shape[-1])), q.new_zeros(q.shape[:-1])

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kind: str, visible: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        _sleep("backward", backward_pace, q, k, kind)
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)

    return forward, backward


def _sleep(half: str, pace: float, q: Tensor, k: Tensor, kind: str) -> None:
    """As long as the products would take."""
    if not pace:
        return
    start = time.perf_counter()
    products = 4.0 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] * q.shape[3]
    time.sleep(pace * products * (0.5 if kind == "causal" else 1.0))
    SLEPT[half] += time.perf_counter() - start
