"""Heads for positions and back: the exchange of DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509, §3).

Any number of heads: member m gets the query heads from m·H // u on, and the key heads that these need. Where a key head
serves queries of several members each of them gets it, and only it; the gradients meet again at its owner, in the order of
members.

    B = microbatch, S_i = positions of member i, S = of all, H = heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.parallel.sequence.layouts import Positions
from trainsys.parallel.sequence.place import united
from trainsys.parallel.sequence.shares import Share, key_heads, query_heads, repeated, serving

_TAG = 1 << 29 | 15 << 24


@dataclass(frozen=True, eq=False)
class Sharing:
    """Members that exchange heads for positions.

    Attributes:
        group: contains every member.
        members: global ranks.
        positions: of each member.
        sorted: whether rows here are in the order of `united`, else member by member.
    """

    group: Group
    members: tuple[int, ...]
    positions: tuple[Positions, ...]
    sorted: bool = True

    @cached_property
    def me(self) -> int:
        return self.members.index(self.group.rank)

    @cached_property
    def lengths(self) -> list[int]:
        return [sum(map(len, own)) for own in self.positions]

    @cached_property
    def order(self) -> Tensor | None:
        """Where each position of `united` is when members' rows follow each other; None: in that order already."""
        every = [i for own in self.positions for run in own for i in run]
        wanted = [i for run in united(self.positions) for i in run]
        if every == wanted or not self.sorted:
            return None
        at = {position: row for row, position in enumerate(every)}
        return torch.tensor([at[position] for position in wanted])

    def to_heads(self, x: Tensor, shares: Sequence[Share]) -> Tensor:
        """[B, S_i, H, D] of every member -> [B, S, own heads, D], positions in the order of `united`."""
        first, last = shares[self.me]
        leaving = [x[:, :, a:b].contiguous() for a, b in shares]
        into = [x.new_empty((x.shape[0], length, last - first, x.shape[3])) for length in self.lengths]
        self._exchange(leaving, into)
        every = torch.cat(into, dim=1)
        return every if self.order is None else every.index_select(1, self.order.to(x.device))

    def from_heads(self, x: Tensor, shares: Sequence[Share], heads: int) -> Tensor:
        """[B, S, own heads, D] of every member -> [B, S_i, H, D]; what several have of a head is added up."""
        if self.order is not None:
            x = torch.empty_like(x).index_copy_(1, self.order.to(x.device), x)
        leaving = [part.contiguous() for part in x.split(self.lengths, dim=1)]
        into = [x.new_empty((x.shape[0], self.lengths[self.me], b - a, x.shape[3])) for a, b in shares]
        self._exchange(leaving, into)
        disjoint = all(a[1] <= b[0] for a, b in zip(shares, shares[1:], strict=False))
        if disjoint:
            return torch.cat(into, dim=2)
        wide = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
        whole = x.new_zeros((*into[0].shape[:2], heads, x.shape[3]), dtype=wide)
        for (a, b), part in zip(shares, into, strict=True):
            whole[:, :, a:b] += part
        return whole.to(x.dtype)

    def _exchange(self, leaving: list[Tensor], into: list[Tensor]) -> None:
        into[self.me].copy_(leaving[self.me])
        peers = [(rank, i) for i, rank in enumerate(self.members) if i != self.me]
        exchange(
            self.group,
            [(rank, leaving[i], _TAG) for rank, i in peers if leaving[i].numel()],
            [(rank, into[i], _TAG) for rank, i in peers if into[i].numel()],
        )


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing, shares: Sequence[Share]) -> Tensor:
        ctx.sharing, ctx.shares, ctx.heads = sharing, shares, x.shape[2]
        return sharing.to_heads(x, shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.sharing.from_heads(grad, ctx.shares, ctx.heads), None, None


class _FromHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharing: Sharing, shares: Sequence[Share], heads: int) -> Tensor:
        ctx.sharing, ctx.shares = sharing, shares
        return sharing.from_heads(x, shares, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.sharing.to_heads(grad, ctx.shares), None, None, None


def exchanged(q: Tensor, k: Tensor, v: Tensor, sharing: Sharing) -> tuple[Tensor, Tensor, Tensor]:
    """Local heads of q, k and v [B, S_i, heads, D] at all members' positions, [B, S, own heads, D].

    Key heads come with equally many query heads each; where the own query heads are cut amid those of a key head, keys
    are repeated, here only.
    """
    size, heads, kv_heads = len(sharing.members), q.shape[2], k.shape[2]
    of_q = [query_heads(heads, size, m) for m in range(size)]
    of_k = [key_heads(heads, kv_heads, size, m) for m in range(size)]
    q, k, v = (
        _ToHeads.apply(t, sharing, shares)  # type: ignore[no-untyped-call]
        for t, shares in ((q, of_q), (k, of_k), (v, of_k))
    )
    if repeated(heads, kv_heads, size, sharing.me) > k.shape[2]:
        which = torch.tensor(serving(heads, kv_heads, size, sharing.me), device=k.device)
        k, v = k.index_select(2, which), v.index_select(2, which)
    return q, k, v


def returned(out: Tensor, sharing: Sharing, heads: int) -> Tensor:
    """[B, S, own heads, E] -> [B, S_i, heads, E]."""
    shares = [query_heads(heads, len(sharing.members), m) for m in range(len(sharing.members))]
    back: Tensor = _FromHeads.apply(out, sharing, shares, heads)  # type: ignore[no-untyped-call]
    return back
