"""Rank bodies for the loss and the tensor-parallel layers: one shard each, compared with the whole on every rank."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainsys.comm.communicator import Communicator
from trainsys.parallel.loss import microbatch_loss
from trainsys.parallel.tensor import RowParallelLinear, TensorParallel, VocabParallelEmbedding, enter, leave

B, S, D, V = 2, 8, 16, 24


def team(
    rank: int, world_size: int, store: Any, sequence_parallel: bool = False
) -> tuple[Communicator, TensorParallel]:
    comm = Communicator(store, rank, timeout_s=20.0)
    comm.reconfigure(0, [tuple(range(world_size))])
    return comm, TensorParallel(comm.group(range(world_size)), sequence_parallel)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def off(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return float((a - b).abs().max() / b.abs().max())


def loss(rank: int, world_size: int, store: Any, dtype: str, scale: float) -> dict[str, float]:
    """Vocabulary-parallel cross entropy and its gradient against torch's own."""
    comm, tp = team(rank, world_size, store)
    logits = (scale * random(B, S, V, seed=0)).to(getattr(torch, dtype))
    targets = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(1))
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole.double().flatten(0, 1), targets.flatten(), reduction="sum") / 100
    (7 * expected).backward()
    alone = microbatch_loss(logits, targets, 100, None)
    own = logits.chunk(world_size, dim=-1)[rank].clone().requires_grad_()
    got = microbatch_loss(own, targets, 100, tp)
    (7 * got).backward()
    assert whole.grad is not None
    comm.close()
    return {
        "loss": off(got.double(), expected), "alone": off(alone.double(), expected),
        "grad": off(own.grad, whole.grad.chunk(world_size, dim=-1)[rank]),
        "bits": float(got.item()),
    }  # fmt: skip


def layers(rank: int, world_size: int, store: Any, sequence_parallel: bool) -> dict[str, float]:
    """Column then row linear with bias, entered and left: outputs and all gradients against the unsharded pair."""
    comm, tp = team(rank, world_size, store, sequence_parallel)
    x, weight = random(B, S, D, seed=0).requires_grad_(), random(B, S, D, seed=9)
    column, row = nn.Linear(D, 4 * D, bias=False).double(), nn.Linear(4 * D, D).double()
    with torch.no_grad():
        for i, p in enumerate((column.weight, row.weight, row.bias)):
            p.copy_(random(*p.shape, seed=2 + i))
    y = row(F.gelu(column(x)))
    (y * weight).sum().backward()

    mine = column.weight.detach().chunk(world_size, 0)[rank].clone().requires_grad_()
    sharded = nn.Linear(4 * D // world_size, D).double()
    sharded.weight = nn.Parameter(row.weight.detach().chunk(world_size, 1)[rank].clone())
    sharded.bias = nn.Parameter(row.bias.detach().clone())
    parallel = RowParallelLinear(sharded, tp)

    def part(t: Tensor) -> Tensor:
        return t.chunk(world_size, 1)[rank] if sequence_parallel else t

    own = part(x.detach()).clone().requires_grad_()
    out = parallel(F.gelu(F.linear(enter(own, tp), mine)))
    (out * part(weight)).sum().backward()
    assert x.grad is not None
    assert column.weight.grad is not None
    assert row.weight.grad is not None
    assert parallel.bias.grad is not None
    bias = tp.sum_in_rank_order(parallel.bias.grad) if sequence_parallel else parallel.bias.grad
    result = {
        "out": off(out, part(y)), "x": off(own.grad, part(x.grad)),
        "column": off(mine.grad, column.weight.grad.chunk(world_size, 0)[rank]),
        "row": off(parallel.weight.grad, row.weight.grad.chunk(world_size, 1)[rank]),
        "bias": off(bias, row.bias.grad),
    }  # fmt: skip
    comm.close()
    return result


def embedding(rank: int, world_size: int, store: Any) -> dict[str, float]:
    """A table sharded by vocabulary: rows and gradients."""
    comm, tp = team(rank, world_size, store)
    table = nn.Embedding(V, D).double()
    with torch.no_grad():
        table.weight.copy_(random(V, D, seed=3))
    tokens = torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(1))
    weight = random(B, S, D, seed=4)
    expected = table(tokens)
    (expected * weight).sum().backward()
    local = nn.Embedding(V // world_size, D).double()
    local.weight = nn.Parameter(table.weight.detach().chunk(world_size, 0)[rank].clone())
    parallel = VocabParallelEmbedding(local, tp)
    got = parallel(tokens)
    (got * weight).sum().backward()
    assert table.weight.grad is not None
    result = {
        "out": off(got, expected),
        "grad": off(parallel.weight.grad, table.weight.grad.chunk(world_size, 0)[rank]),
    }
    comm.close()
    return result


def sums(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """Sequence collectives are inverse to each other; a sum in rank order does not depend on the place."""
    comm, tp = team(rank, world_size, store, sequence_parallel=True)
    x = random(B, S, D, seed=rank)
    every = [random(B, S, D, seed=r) for r in range(world_size)]
    total = every[0].clone()
    for e in every[1:]:
        total += e
    flat = x.flatten().float()
    whole, shifted = tp.sum_in_rank_order(flat), tp.sum_in_rank_order(flat[3:].clone())
    result = {
        "gather": torch.equal(tp.gather_sequence(tp.slice_sequence(every[0])), every[0]),
        "scatter": torch.equal(tp.scatter_sequence(x), tp.slice_sequence(total)),
        "place": torch.equal(whole[3:], shifted),
        "few": torch.equal(tp.all_reduce(x.flatten()[:3]), total.flatten()[:3]),
        "many": torch.equal(tp.all_reduce(x), total),
        "neighbours": torch.equal(tp.neighbours(2).all_reduce(x), every[rank - rank % 2] + every[rank - rank % 2 + 1]),
        "leave": off(leave(x, tp), tp.slice_sequence(total)) < 1e-14,
    }
    comm.close()
    return result
