"""Heads for positions and back: the exchange of DeepSpeed-Ulysses (Jacobs et al. 2023, arXiv:2309.14509, §3).

Any number of heads: member m gets the query heads from m·H // u on, and the key heads that these need. Where a key head
serves queries of several members each of them gets it, and only it; the gradients meet again at its owner, in the
order of members.

    B = microbatch, S_i = positions of member i, S = of all, H = heads
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.comm.tags import HEADS
from trainsys.sequence.layouts import Positions, num_positions
from trainsys.sequence.place import united
from trainsys.sequence.shares import Share, key_heads, query_heads, repeated, serving


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
        return [num_positions(own) for own in self.positions]

    @cached_property
    def order(self) -> Tensor | None:
        """Where each position of `united` is when members' rows follow each other; None: in that order already."""
        every = [i for own in self.positions for run in own for i in run]
        wanted = [i for run in united(self.positions) for i in run]
        if every == wanted or not self.sorted:
            return None
        at = {position: row for row, position in enumerate(every)}
        return torch.tensor([at[position] for position in wanted])

    def to_heads(self, tensors: Sequence[Tensor], shares: Sequence[Sequence[Share]]) -> tuple[Tensor, ...]:
        """Tensors [B, S_i, H, D] of every member -> [B, S, own heads, D], positions in the order of `united`.

        Args:
            shares: of each tensor, the heads that go to each member.
        """
        leaving = [[x[:, :, slice(*of[m])] for x, of in zip(tensors, shares, strict=True)] for m in self._all]
        own = [of[self.me][1] - of[self.me][0] for of in shares]
        shapes = [
            [(x.shape[0], length, h, x.shape[3]) for x, h in zip(tensors, own, strict=True)] for length in self.lengths
        ]
        found = [torch.cat(parts, dim=1) for parts in zip(*self._exchange(leaving, shapes), strict=True)]
        return tuple(x if self.order is None else x.index_select(1, self.order.to(x.device)) for x in found)

    def from_heads(self, tensors: Sequence[Tensor], shares: Sequence[Sequence[Share]]) -> tuple[Tensor, ...]:
        """Tensors [B, S, own heads, D] of every member -> [B, S_i, H, D]; what several have of a head is added up."""
        if self.order is not None:
            order = self.order.to(tensors[0].device)
            tensors = [torch.empty_like(x).index_copy_(1, order, x) for x in tensors]
        leaving = list(zip(*(x.split(self.lengths, dim=1) for x in tensors), strict=True))
        shapes = [
            [
                (x.shape[0], self.lengths[self.me], of[m][1] - of[m][0], x.shape[3])
                for x, of in zip(tensors, shares, strict=True)
            ]
            for m in self._all
        ]
        come = zip(*self._exchange(leaving, shapes), strict=True)
        return tuple(_whole(parts, of) for parts, of in zip(come, shares, strict=True))

    @property
    def _all(self) -> range:
        return range(len(self.members))

    def _exchange(
        self, leaving: Sequence[Sequence[Tensor]], shapes: Sequence[Sequence[tuple[int, ...]]]
    ) -> list[Sequence[Tensor]]:
        """Some tensors for each member, as one message; those of `shapes` come back."""
        like = leaving[self.me][0]
        out = {m: torch.cat([x.reshape(-1) for x in leaving[m]]) for m in self._all if m != self.me}
        into = {m: like.new_empty(sum(map(prod, shapes[m]))) for m in out}
        exchange(
            self.group,
            [(self.members[m], flat, HEADS) for m, flat in out.items() if flat.numel()],
            [(self.members[m], flat, HEADS) for m, flat in into.items() if flat.numel()],
        )
        found: list[Sequence[Tensor]] = []
        for m in self._all:
            if m == self.me:
                found.append(leaving[m])
            else:
                parts = into[m].split([prod(shape) for shape in shapes[m]])
                found.append([x.view(shape) for x, shape in zip(parts, shapes[m], strict=True)])
        return found


def _whole(parts: Sequence[Tensor], shares: Sequence[Share]) -> Tensor:
    """All heads from those of each member; what several have is added up in their order."""
    if all(a[1] <= b[0] for a, b in pairwise(shares)):
        return torch.cat(tuple(parts), dim=2)
    first = parts[0]
    wide = torch.float32 if first.dtype in (torch.bfloat16, torch.float16) else first.dtype
    whole = first.new_zeros((*first.shape[:2], shares[-1][1], first.shape[3]), dtype=wide)
    for (a, b), part in zip(shares, parts, strict=True):
        whole[:, :, a:b] += part
    return whole.to(first.dtype)


class _ToHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sharing: Sharing, shares: Sequence[Sequence[Share]], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.sharing, ctx.shares = sharing, shares
        return sharing.to_heads(tensors, shares)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.sharing.from_heads(grads, ctx.shares)


class _FromHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sharing: Sharing, shares: Sequence[Share], x: Tensor) -> Tensor:
        ctx.sharing, ctx.shares = sharing, shares
        return sharing.from_heads([x], [shares])[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.sharing.to_heads([grad], [ctx.shares])[0]


def exchanged(q: Tensor, k: Tensor, v: Tensor, sharing: Sharing) -> tuple[Tensor, Tensor, Tensor]:
    """Local heads of q, k and v [B, S_i, heads, D] at all members' positions, [B, S, own heads, D], in one exchange.

    Key heads come with equally many query heads each; where the own query heads are cut amid those of a key head, keys
    are repeated, here only.
    """
    size, heads, kv_heads = len(sharing.members), q.shape[2], k.shape[2]
    of_q = [query_heads(heads, size, m) for m in range(size)]
    of_k = [key_heads(heads, kv_heads, size, m) for m in range(size)]
    q, k, v = _ToHeads.apply(sharing, (of_q, of_k, of_k), q, k, v)  # type: ignore[no-untyped-call]
    if repeated(heads, kv_heads, size, sharing.me) > k.shape[2]:
        which = torch.tensor(serving(heads, kv_heads, size, sharing.me), device=k.device)
        k, v = k.index_select(2, which), v.index_select(2, which)
    return q, k, v


def returned(out: Tensor, sharing: Sharing, heads: int) -> Tensor:
    """[B, S, own heads, E] -> [B, S_i, heads, E]."""
    shares = [query_heads(heads, len(sharing.members), m) for m in range(len(sharing.members))]
    back: Tensor = _FromHeads.apply(sharing, shares, out)  # type: ignore[no-untyped-call]
    return back
