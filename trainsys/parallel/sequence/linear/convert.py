"""From one layout of positions to another, in one exchange: softmax wants every cp rank to have early and late
positions, linear attention wants neighbours.

A layout says which positions each member has, as ranges in the order of its rows. Positions may be cut unevenly, and a
member may have none. The new layout may leave positions out, or give them to several, whose gradients are then added
in the order of cp indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainsys.comm.exchange import exchange
from trainsys.parallel.sequence.linear.scan import TAG, Team

Layout = tuple[tuple[range, ...], ...]  # of each member, by cp index
_TAG = TAG | 1 << 18


class Strip(NamedTuple):
    """Positions that go from a run of rows to a run of rows."""

    here: slice
    there: slice


def contiguous(seq_len: int, size: int) -> Layout:
    """Nearly equal parts in the order of positions."""
    return tuple((range(i * seq_len // size, (i + 1) * seq_len // size),) for i in range(size))


def rows(ranges: Sequence[range]) -> int:
    """How many positions a member has."""
    return sum(map(len, ranges))


def strips(a: Sequence[range], b: Sequence[range]) -> list[Strip]:
    """What of a member's rows under one layout are a member's rows under another, in the order of the latter."""
    found = []
    starts_a, starts_b = ([0, *accumulate(map(len, ranges))] for ranges in (a, b))
    for to, row_b in zip(b, starts_b, strict=False):
        for own, row_a in zip(a, starts_a, strict=False):
            first, last = max(own.start, to.start), min(own.stop, to.stop)
            if first < last:
                here, there = row_a + first - own.start, row_b + first - to.start
                found.append(Strip(slice(here, here + last - first), slice(there, there + last - first)))
    return found


def moves(a: Layout, b: Layout, bytes_per_row: int) -> list[list[int]]:
    """Bytes from each member to each other; what stays where it is does not count."""
    return [
        [bytes_per_row * sum(s.here.stop - s.here.start for s in strips(own, to)) * (i != j) for j, to in enumerate(b)]
        for i, own in enumerate(a)
    ]


def convert(x: Tensor, team: Team, a: Layout, b: Layout) -> Tensor:
    """[B, S_i, ...] in layout `a` -> [B, S'_i, ...] in layout `b`, and gradients the other way.

    Of all of `team`, with the same layouts; rows that nobody has are zero.
    """
    assert len(a) == len(b) == team.size, (a, b)
    assert x.shape[1] == rows(a[team.index]), (x.shape, a[team.index])
    return x if a == b else cast(Tensor, cast(Any, _Convert).apply(x, team, a, b))


class _Convert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, team: Team, a: Layout, b: Layout) -> Tensor:
        ctx.team, ctx.a, ctx.b = team, a, b
        return _move(x, team, a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _move(grad, ctx.team, ctx.b, ctx.a), None, None, None


def _move(x: Tensor, team: Team, a: Layout, b: Layout) -> Tensor:
    """What several send for one row is added in the order of cp indices; bfloat16 in float32."""
    me = team.index
    leaving = [strips(a[me], to) for to in b]
    coming = [strips(own, b[me]) for own in a]
    sends = [torch.cat([x[:, s.here] for s in part], dim=1) if part else None for part in leaving]
    into = [sends[me] if i == me else _empty(x, part) if part else None for i, part in enumerate(coming)]
    peers = [(i, rank) for i, rank in enumerate(team.members) if i != me]
    exchange(
        team.group,
        [(rank, data, _TAG) for i, rank in peers if (data := sends[i]) is not None],
        [(rank, data, _TAG) for i, rank in peers if (data := into[i]) is not None],
    )
    wide = torch.promote_types(x.dtype, torch.float32)
    out = x.new_zeros((x.shape[0], rows(b[me]), *x.shape[2:]), dtype=wide)
    for arrived, found in zip(coming, into, strict=True):
        if found is not None:
            lengths = [strip.there.stop - strip.there.start for strip in arrived]
            for strip, value in zip(arrived, found.split(lengths, dim=1), strict=True):
                out[:, strip.there] += value
    return out.to(x.dtype)


def _empty(x: Tensor, part: list[Strip]) -> Tensor:
    return x.new_empty((x.shape[0], sum(s.there.stop - s.there.start for s in part), *x.shape[2:]))
