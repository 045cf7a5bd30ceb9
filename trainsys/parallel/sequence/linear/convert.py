"""From one layout of positions to another, in one exchange: softmax wants every cp rank to have early and late
positions, linear attention wants neighbours.

A member's rows lie in the order of its runs. Positions may be cut unevenly, and a member may have none. The new layout
may leave positions out, or give them to several, whose gradients are then added in the order of cp indices.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainsys.comm.exchange import exchange
from trainsys.parallel.sequence.layouts import Layout, Positions
from trainsys.parallel.sequence.linear.scan import TAG, Team

_TAG = TAG | 1 << 18


class Strip(NamedTuple):
    """Evenly spaced rows of one member that are evenly spaced rows of another."""

    here: slice
    there: slice
    length: int


def rows(positions: Positions) -> int:
    """How many a member has."""
    return sum(map(len, positions))


@lru_cache(maxsize=1 << 12)
def strips(a: Positions, b: Positions) -> tuple[Strip, ...]:
    """What of a member's rows under one layout are a member's rows under another, in the order of the latter."""
    found, row_b = [], 0
    for to in b:
        row_a = 0
        for own in a:
            both = _common(own, to)
            if both:
                here, there = (
                    slice(row + run.index(both[0]), row + run.index(both[-1]) + 1, both.step // run.step)
                    for row, run in ((row_a, own), (row_b, to))
                )
                found.append(Strip(here, there, len(both)))
            row_a += len(own)
        row_b += len(to)
    return tuple(found)


def _common(a: range, b: range) -> range:
    """The numbers of two rising ranges that are in both."""
    step = lcm(a.step, b.step)
    inside = range(a.start + -(-max(0, b.start - a.start) // a.step) * a.step, min(a.stop, b.stop), a.step)
    first = next((number for number in inside[: step // a.step] if number in b), None)
    return range(0) if first is None else range(first, inside.stop, step)


def moves(a: Layout, b: Layout, bytes_per_row: int) -> list[list[int]]:
    """Bytes from each member to each other; what stays where it is does not count."""
    return [
        [bytes_per_row * sum(strip.length for strip in strips(own, to)) * (i != j) for j, to in enumerate(b)]
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
            values = found.split([strip.length for strip in arrived], dim=1)
            for strip, value in zip(arrived, values, strict=True):
                out[:, strip.there] += value
    return out.to(x.dtype)


def _empty(x: Tensor, part: tuple[Strip, ...]) -> Tensor:
    return x.new_empty((x.shape[0], sum(strip.length for strip in part), *x.shape[2:]))
