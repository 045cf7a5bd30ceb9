"""Attention where all positions are here, of some heads, computed as if they were spread over the teams: the same bits.

N = microbatch · kv_heads, G = query heads per key head, S = all positions, D, E = head sizes
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainsys.parallel.sequence.merge import Gradients, Partial, Segment
from trainsys.parallel.sequence.trip import Trip
from trainsys.sequence.layouts import Positions, num_positions


def forward(trip: Trip, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q [N, G, S, D], k [N, S, D], v [N, S, E] -> out [N, G, S, E] and lse [N, G, S], in the type that merges."""
    spans, keys = _spans(trip), _segments(trip, k, v)
    partials = []
    for me, (rows, positions) in enumerate(zip(spans, trip.origins, strict=True)):
        partial = Partial(q[:, :, rows].contiguous(), v.shape[-1], positions, trip.journey.mask, trip.scale)
        for source in _turn(me, len(spans)):
            partial.show(keys[source])
        partials.append(partial)
    return torch.cat([p.out for p in partials], dim=2), torch.cat([p.lse for p in partials], dim=2)


def backward(
    trip: Trip, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, summed in the type of `lse`; those of keys in the order of the ring home."""
    kept, spans, keys = lse.dtype, _spans(trip), _segments(trip, k, v)
    added: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # (queries of, keys of)
    of_q = torch.zeros_like(q, dtype=kept)
    for me, (rows, positions) in enumerate(zip(spans, trip.origins, strict=True)):
        slope, queries, whole, sums_of = (t[:, :, rows].contiguous() for t in (grad, q, out, lse))
        found = Gradients(slope, queries, whole, sums_of, positions, trip.journey.mask, trip.scale)
        for source in _turn(me, len(spans)):
            of_k, of_v = (torch.zeros_like(t[:, spans[source]], dtype=kept) for t in (k, v))
            found.show(keys[source], _runs(trip.origins[source], of_k, of_v))
            added[me, source] = of_k, of_v
        of_q[:, :, rows] = found.of_q
    sums = []
    for source in range(len(spans)):
        order = [(source + i) % len(spans) for i in range(1, len(spans) + 1)]
        of_k, of_v = added[order[0], source]
        for me in order[1:]:
            of_k, of_v = added[me, source][0] + of_k, added[me, source][1] + of_v
        sums.append((of_k, of_v))
    return of_q, torch.cat([s for s, _ in sums], dim=1), torch.cat([s for _, s in sums], dim=1)


def _turn(me: int, size: int) -> list[int]:
    return [(me - i) % size for i in range(size)]


def _spans(trip: Trip) -> list[slice]:
    found, at = [], 0
    for positions in trip.origins:
        length = num_positions(positions)
        found.append(slice(at, at + length))
        at += length
    return found


def _segments(trip: Trip, k: Tensor, v: Tensor) -> list[list[Segment]]:
    return [
        _runs(positions, k[:, rows].contiguous(), v[:, rows].contiguous())
        for rows, positions in zip(_spans(trip), trip.origins, strict=True)
    ]


def _runs(positions: Positions, k: Tensor, v: Tensor) -> list[Segment]:
    found, at = [], 0
    for run in positions:
        rows = slice(at, at + len(run))
        found.append(Segment(run, k[:, rows], v[:, rows]))
        at = rows.stop
    return found
