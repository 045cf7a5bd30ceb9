"""Tensor parallelism (Shoeybi et al. 2019, §3; Korthikanti et al. 2022, §4.2.2 for its sequence-parallel form).

A plain model becomes one tp shard of itself: weights already have their local shapes, and three kinds of places get
communication. ``f`` stands where a replicated activation enters a region of sharded weights, ``g`` where partial sums
leave it. Under sequence parallelism ``f`` gathers the sequence and ``g`` scatters it.

    B = microbatch, S = sequence, D = hidden size, V = vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.models.decoder import Decoder
from trainsys.models.dropout import KeyedDropout, Shard
from trainsys.models.moe import MoE
from trainsys.parallel.split import Deferred, linear
from trainsys.space.tensor import EMBED

REGIONS = ("attention", "feed_forward")  # submodules whose inside runs on sharded weights


@dataclass(frozen=True)
class TensorParallel:
    """The tp group of this rank and how activations travel between regions.

    Attributes:
        members: those of the group that take part; empty: all.
    """

    group: Group
    sequence_parallel: bool = False
    members: tuple[int, ...] = ()

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.members or tuple(self.group.ranks)

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def index(self) -> int:
        return self.ranks.index(self.group.rank)

    def neighbours(self, count: int) -> TensorParallel:
        """The same among the `count` ranks around this one, of which it is one; `count` divides the size."""
        first = self.index - self.index % count
        return replace(self, members=self.ranks[first : first + count])

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum over the members in rank order; the bits are equal on all of them.

        By direct messages, as many bytes as in a ring: a backend's all-reduce has an order of its own for each part of
        the tensor, and takes in the whole group.
        """
        if self.size == 2 or x.numel() < self.size:
            return self.sum_in_rank_order(x)
        slices = [part.contiguous() for part in x.reshape(-1).tensor_split(self.size)]
        own = _sum_in_order(self._exchange_slices(slices, [torch.empty_like(slices[self.index]) for _ in slices]))
        parts = self._exchange_slices([own] * self.size, [torch.empty_like(part) for part in slices])
        return torch.cat(parts).view(x.shape)

    def _exchange_slices(self, sends: list[Tensor], into: list[Tensor]) -> list[Tensor]:
        """Send ``sends[i]`` to the i-th rank and receive ``into[i]`` from it; the own one is taken over."""
        into[self.index] = sends[self.index]
        peers = [(r, i) for i, r in enumerate(self.ranks) if i != self.index]
        exchange(self.group, [(r, sends[i], 0) for r, i in peers], [(r, into[i], 0) for r, i in peers])
        return into

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Everybody's `x`, all of one shape, in rank order."""
        own = x.contiguous()
        return self._exchange_slices([own] * self.size, [torch.empty_like(own) for _ in range(self.size)])

    def sum_in_rank_order(self, x: Tensor) -> Tensor:
        """Sum over the group for small tensors, with the bits of an element independent of its place in `x`.

        An all-reduce of three or more ranks begins each part of the tensor at another rank.
        """
        return _sum_in_order(self.all_gather(x))

    def gather_sequence(self, x: Tensor) -> Tensor:
        """[B, S/tp, D] on each rank -> [B, S, D]."""
        return torch.cat(self.all_gather(x), dim=1)

    def scatter_sequence(self, x: Tensor) -> Tensor:
        """Partial sums [B, S, D] -> summed [B, S/tp, D]; added in rank order, so every layout of dp agrees."""
        slices = [part.contiguous() for part in x.chunk(self.size, dim=1)]
        return _sum_in_order(self._exchange_slices(slices, [torch.empty_like(slices[0]) for _ in slices]))

    def slice_sequence(self, x: Tensor) -> Tensor:
        return x.chunk(self.size, dim=1)[self.index].contiguous()


def _sum_in_order(parts: list[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


class _Enter(torch.autograd.Function):
    """``f``: identity forward, all-reduce backward; gather forward, scatter-sum backward under sequence parallelism."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return tp.gather_sequence(x) if tp.sequence_parallel else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tp = ctx.tp
        return (tp.scatter_sequence(grad) if tp.sequence_parallel else tp.all_reduce(grad.contiguous())), None


class _Leave(torch.autograd.Function):
    """``g``: all-reduce forward, identity backward; scatter-sum forward, gather backward under sequence parallelism."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return tp.scatter_sequence(x) if tp.sequence_parallel else tp.all_reduce(x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        tp = ctx.tp
        return (tp.gather_sequence(grad) if tp.sequence_parallel else grad), None


class _SliceSequence(torch.autograd.Function):
    """Full sequence -> this rank's part; the backward gathers the parts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        ctx.tp = tp
        return tp.slice_sequence(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.tp.gather_sequence(grad), None


def apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    result: Tensor = cast(Any, function).apply(*args)
    return result


def enter(x: Tensor, tp: TensorParallel) -> Tensor:
    return apply(_Enter, x, tp)


def leave(x: Tensor, tp: TensorParallel) -> Tensor:
    return apply(_Leave, x, tp)


class RowParallelLinear(nn.Module):
    """A Linear whose weight is sharded along its input dim: partial products, ``g``, then the replicated bias."""

    deferred: Deferred | None = None

    def __init__(self, whole: nn.Linear, tp: TensorParallel) -> None:
        super().__init__()
        self.weight, self.bias, self.tp = whole.weight, whole.bias, tp

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, in/tp] -> [B, S, out] ([B, S/tp, out] under sequence parallelism)."""
        y = leave(linear(x, self.weight, None, self.deferred), self.tp)
        return y if self.bias is None else y + self.bias


class VocabParallelEmbedding(nn.Module):
    """An Embedding whose table is sharded along the vocabulary: look up what is local, sum the rest in."""

    def __init__(self, embedding: nn.Embedding, tp: TensorParallel) -> None:
        super().__init__()
        self.weight, self.tp = embedding.weight, tp

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [B, S] -> [B, S, D]."""
        local = tokens - self.tp.index * self.weight.shape[0]
        outside = (local < 0) | (local >= self.weight.shape[0])
        x = F.embedding(local.masked_fill(outside, 0), self.weight).masked_fill(outside.unsqueeze(-1), 0.0)
        return apply(_SumVocab, x, self.tp)


class _SumVocab(torch.autograd.Function):
    """Sum over the group forward, identity backward (the sequence stays whole: positions are added next)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tp: TensorParallel) -> Tensor:
        return tp.all_reduce(x.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


ROW_PARALLEL = ("wo", "w2", "c_proj")  # linears whose weight is sharded along dim 1


def apply_tensor_parallel(model: Decoder, tp: TensorParallel) -> None:
    """Turn a stage whose parameters have local shapes into one tp shard. The order below is the whole recipe."""
    for name, module in list(model.named_modules()):
        if name.split(".")[-1] in REGIONS:
            module.register_forward_pre_hook(_entering(tp))
            for child, inner in list(module.named_children()):
                if child in ROW_PARALLEL and isinstance(inner, nn.Linear):
                    setattr(module, child, RowParallelLinear(inner, tp))
            if isinstance(module, MoE):  # many row-parallel matrices; their weighted answers are summed once
                module.register_forward_hook(_leaving(tp))
        if isinstance(module, KeyedDropout) and tp.sequence_parallel and name.startswith("layers."):
            module.shard = Shard(0, tp.index, tp.size)
    if EMBED in model.blocks:
        if isinstance(model.tok_embeddings, nn.Embedding):
            model.tok_embeddings = VocabParallelEmbedding(model.tok_embeddings, tp)
        if tp.sequence_parallel:
            whole = model.embed
            model.embed = lambda tokens: apply(_SliceSequence, whole(tokens), tp)  # type: ignore[method-assign]
    if model.output is not None:
        model.output.register_forward_pre_hook(_entering(tp))


def _entering(tp: TensorParallel) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda module, args: (enter(args[0], tp), *args[1:])


def _leaving(tp: TensorParallel) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    return lambda module, args, out: leave(out, tp)
