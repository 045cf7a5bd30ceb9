"""What travels between cp teams, as flat chunks: each run of positions on its own, keys before values.

Packed once, a chunk is what the kernel wants (heads before positions), so that it is used where it has arrived, without
a copy.

    B = microbatch, S = local positions, N = B · kv_heads, G = query heads per key head, L = positions of a run
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from trainsys.parallel.sequence.merge import Segment
from trainsys.sequence.layouts import Positions


def to_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, G·heads, D] -> [B·heads, G, S, D], contiguous."""
    batch, length, every, size = x.shape
    return x.reshape(batch, length, heads, every // heads, size).permute(0, 2, 3, 1, 4).reshape(
        batch * heads, every // heads, length, size
    )  # fmt: skip


def from_heads(x: Tensor, batch: int) -> Tensor:
    """[B·heads, G, S, D] -> [B, S, G·heads, D], contiguous."""
    heads, groups, length, size = x.shape
    split = x.reshape(batch, heads // batch, groups, length, size).permute(0, 3, 1, 2, 4)
    return split.reshape(batch, length, heads // batch * groups, size)


def ends(positions: Positions, width: int) -> list[int]:
    """Where each run of a chunk begins in its flat tensor, and where the last one ends; `width` elements a position."""
    return [0, *accumulate(len(run) * width for run in positions)]


def indices(own: Positions, part: Positions) -> list[tuple[int, int]]:
    """Of each run of `part`, which of the local positions `own` it is; runs of part lie in the runs of own."""
    found, base = [], 0
    for run, piece in zip(own, part, strict=True):
        first = base + (run.index(piece[0]) if piece else 0)
        found.append((first, first + len(piece)))
        base += len(run)
    return found


def pack(tensors: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
    """Rows of some tensors [N, S, *] as one flat chunk: run by run, tensor by tensor."""
    parts = [t[:, a:b].flatten() for a, b in spans for t in tensors]
    return torch.cat(parts) if len(parts) > 1 else parts[0].clone()


def unpack(flat: Tensor, shapes: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[list[Tensor]]:
    """Views of a chunk: of each run, tensors [N, L, *] with the other sizes of `shapes`, (N, *rest)."""
    found, at = [], 0
    for length in lengths:
        run = []
        for first, *rest in shapes:
            size = (first, length, *rest)
            run.append(flat[at : at + torch.Size(size).numel()].view(size))
            at += run[-1].numel()
        found.append(run)
    assert at == flat.numel(), (at, flat.numel())
    return found


def segments(flat: Tensor, positions: Positions, heads: int, size: int, value_size: int) -> list[Segment]:
    """The keys and values of a chunk that has the runs `positions`."""
    shapes = ((heads, size), (heads, value_size))
    views = unpack(flat, shapes, [len(run) for run in positions])
    return [Segment(run, k, v) for run, (k, v) in zip(positions, views, strict=True)]
