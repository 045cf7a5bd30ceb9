"""From one layout of positions to another, in one exchange: softmax wants every cp rank to have early and late
positions, linear attention wants neighbours.

A member's rows lie in the order of its runs. Positions may be cut unevenly, and a member may have none. The new layout
may leave positions out, or give them to several, whose gradients are then added in the order of cp indices.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainsys.comm.exchange import exchange
from trainsys.parallel.sequence.linear.scan import TAG, Team
from trainsys.sequence.layouts import Layout, num_positions
from trainsys.sequence.moves import Strip, strips

_TAG = TAG | 1 << 18


def convert(x: Tensor, team: Team, a: Layout, b: Layout) -> Tensor:
    """[B, S_i, ...] in layout `a` -> [B, S'_i, ...] in layout `b`, and gradients the other way.

    Of all of `team`, with the same layouts; rows that nobody has are zero.
    """
    assert len(a) == len(b) == team.size, (a, b)
    assert x.shape[1] == num_positions(a[team.index]), (x.shape, a[team.index])
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
    out = x.new_zeros((x.shape[0], num_positions(b[me]), *x.shape[2:]), dtype=wide)
    for arrived, found in zip(coming, into, strict=True):
        if found is not None:
            values = found.split([strip.length for strip in arrived], dim=1)
            for strip, value in zip(arrived, values, strict=True):
                out[:, strip.there] += value
    return out.to(x.dtype)


def _empty(x: Tensor, part: tuple[Strip, ...]) -> Tensor:
    return x.new_empty((x.shape[0], sum(strip.length for strip in part), *x.shape[2:]))
