"""Other implementations of attention over a cut sequence, where they are installed: same tensors, same wires, same run.

torch's own ring template (private, with the CPU's flash kernel) in both of its ways to pass keys on, DeepSpeed's
Ulysses, and ring-flash-attn, if an environment has it with a kernel for this device. All attend causally.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor.experimental._context_parallel import _attention as template

from benchmarks._attention_body import HOME, Cell, Run, context
from trainsys.comm.group import Group
from trainsys.parallel.sequence import kernel
from trainsys.parallel.sequence.context import ContextParallel

PEERS = {
    "peer:torch all-gather": "torch",
    "peer:torch all-to-all": "torch",
    "peer:deepspeed": "deepspeed",
    "peer:ring-flash-attn": "ring_flash_attn",
}


def peers(cell: Cell, told: Callable[[str], None]) -> list[str]:
    """Those that are installed and can do the cell; of others it is told why not."""
    if cell.mask.documents or cell.seq_len % (2 * cell.wires.num_ranks):
        told("peers: none for several documents, or lengths that 2 n does not divide")
        return []
    found = []
    for name, module in PEERS.items():
        if importlib.util.find_spec(module) is None:
            told(f"{name}: {module} is not installed")
        elif module == "deepspeed" and cell.heads % cell.wires.num_ranks:
            told(f"{name}: {cell.heads} heads cannot be shared by {cell.wires.num_ranks}")
        else:
            found.append(name)
    return found


def peer(name: str, cell: Cell, group: Group) -> tuple[ContextParallel, Run]:
    """How a peer attends, and the layout that it wants."""
    if not dist.is_initialized():
        os.dup2(2, 1)  # what a peer prints is not the bench's answer
        store = dist.PrefixStore("peers", HOME.store)
        wait = timedelta(seconds=300)
        dist.init_process_group("gloo", store=store, rank=group.rank, world_size=group.size, timeout=wait)
    if name == "peer:deepspeed":
        return context(cell, group, "contiguous"), _deepspeed(group.size)
    if name == "peer:ring-flash-attn":
        return context(cell, group, "zigzag"), _ring_flash_attn()
    way = template._RotateMethod.ALL_GATHER if "gather" in name else template._RotateMethod.ALL_TO_ALL
    return context(cell, group, "zigzag"), partial(_torch, way)


def _torch(way: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = _Template.apply(*(t.transpose(1, 2) for t in (q, k, v)), way)  # type: ignore[no-untyped-call]
    return out.transpose(1, 2).flatten(2)


class _Template(torch.autograd.Function):
    """[B, heads, S_i, D]; grouped heads travel once and are repeated in the kernel only."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, way: Any) -> Tensor:
        template._cp_options.enable_load_balance = True
        template._cp_options.rotate_method = ctx.way = way
        out, lse, *_ = template._templated_ring_attention(
            dist.group.WORLD, 2, _flash, query=q.contiguous(), key=k, value=v, is_causal=True
        )
        ctx.save_for_backward(q.contiguous(), k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        template._cp_options.rotate_method = ctx.way
        grads = template._templated_ring_attention_backward(
            dist.group.WORLD, 2, _flash_backward, grad_out=grad.contiguous(), grad_out_name="grad_out",
            query=q, key=k, value=v, out=out, logsumexp=lse, is_causal=True,
        )  # fmt: skip
        return grads[0], grads[1], grads[2], None


def _flash(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> tuple[Tensor, Tensor]:
    key, value = (_each(t, query.shape[1]) for t in (key, value))
    return kernel.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, is_causal)  # type: ignore[no-any-return]


def _flash_backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, is_causal: bool
) -> tuple[Tensor, ...]:
    heads, kv_heads = query.shape[1], key.shape[1]
    of_q, *of_kv = kernel.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, query, _each(key, heads), _each(value, heads), out, logsumexp, 0.0, is_causal
    )
    if heads > kv_heads:
        of_kv = [t.unflatten(1, (kv_heads, -1)).sum(dim=2) for t in of_kv]
    return of_q, *of_kv


def _each(t: Tensor, heads: int) -> Tensor:
    """A key head for each query head."""
    return t if t.shape[1] == heads else t.repeat_interleave(heads // t.shape[1], dim=1)


def _deepspeed(size: int) -> Run:
    """Where there are fewer key heads than ranks they are repeated before, for it cannot."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled first
    import deepspeed.comm
    from deepspeed.sequence.layer import DistributedAttention

    if not deepspeed.comm.is_initialized():
        deepspeed.comm.init_distributed("gloo", dist_init_required=False, verbose=False)

    def local(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)

    attend = DistributedAttention(local, dist.group.WORLD, scatter_idx=2, gather_idx=1)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if k.shape[2] < size:
            k, v = (t.repeat_interleave(size // t.shape[2], dim=2) for t in (k, v))
        out: Tensor = attend(q, k, v, 0)
        return out.flatten(2)

    return run


def _ring_flash_attn() -> Run:
    from ring_flash_attn import zigzag_ring_flash_attn_func

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = zigzag_ring_flash_attn_func(q, k, v, causal=True)
        return out.flatten(2)

    return run
