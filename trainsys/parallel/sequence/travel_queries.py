"""Attention in which queries travel and keys stay, over any datapath; results go home and are merged on the way.

Forward as in TokenRing (Wang et al. 2024, arXiv:2412.20501), backward as in BurstAttention (Sun et al. 2024,
arXiv:2403.09347, §3.2): with the queries travel the output's gradient, the logarithm of the sums and
``delta = rowsum(grad · out)``, and the gradient of the queries goes home. Either half can be combined with travelling
keys in the other.

    B = microbatch, S = local positions, N = B · kv_heads, G = query heads per key head, D, E = head sizes
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trainsys.comm.flow import Gather
from trainsys.comm.flow_back import Reduce, add
from trainsys.comm.routed import Span
from trainsys.parallel.sequence.freight import Freight
from trainsys.parallel.sequence.merge import Gradients, Partial, merge
from trainsys.parallel.sequence.packing import ends, pack, unpack
from trainsys.parallel.sequence.trip import Trip, own_segments
from trainsys.sequence.layouts import Positions, num_positions

_PAD = 8  # features by which a gradient is widened for delta: kernels like multiples


class Cargo(Freight):
    """Some tensors [N, G, S, *] of this member as they travel, or results of their shapes as they go home.

    Args:
        rows: N, G.
        sizes: last size of each.
    """

    def __init__(self, trip: Trip, rows: tuple[int, int], sizes: Sequence[int]) -> None:
        self.rows, self.sizes = rows, tuple(sizes)
        super().__init__(trip, rows[0] * rows[1] * sum(sizes))

    def pack(self, tensors: Sequence[Tensor], spans: Sequence[tuple[int, int]]) -> Tensor:
        """Positions `spans` of tensors [N, G, S, *] as a chunk."""
        return pack([t.flatten(0, 1) for t in tensors], spans)

    def runs(self, flat: Tensor, positions: Positions) -> list[list[Tensor]]:
        """Views [N·G, L, *] of a chunk, run by run."""
        every = self.rows[0] * self.rows[1]
        return unpack(flat, [(every, size) for size in self.sizes], [len(run) for run in positions])

    def whole(self, flat: Tensor, positions: Positions) -> list[Tensor]:
        """Tensors [N, G, positions, *] of a chunk."""
        runs = self.runs(flat, positions)
        joined = [parts[0] if len(parts) == 1 else torch.cat(parts, dim=1) for parts in zip(*runs, strict=True)]
        return [t.view(*self.rows, *t.shape[1:]) for t in joined]

    def leave(self, tensors: Sequence[Tensor]) -> Gather:
        trip = self.trip
        chunks = [self.pack(tensors, spans) for spans in trip.parts]
        return Gather(trip.group, trip.members, trip.journey.there, chunks, self.offsets)

    def home(self, sums: dict[int, Tensor]) -> list[Tensor]:
        """Tensors [N, G, S, *] of this member from its own chunks."""
        trip, every = self.trip, self.rows[0] * self.rows[1]
        length = num_positions(trip.positions)
        found = [next(iter(sums.values())).new_empty((every, length, size)) for size in self.sizes]
        for part, spans in enumerate(trip.parts):
            chunk = trip.chunk(part)
            for (first, last), run in zip(spans, self.runs(sums[chunk], trip.journey.chunks[chunk]), strict=True):
                for into, tensor in zip(found, run, strict=True):
                    into[:, first:last] = tensor
        return [t.view(*self.rows, *t.shape[1:]) for t in found]


def forward(trip: Trip, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q [N, G, S, D], k [N, S, D], v [N, S, E] -> out [N, G, S, E] and lse [N, G, S], in the type that merges."""
    own = own_segments(trip, k, v)

    def seen_by(queries: Tensor, positions: Positions) -> Partial:
        partial = Partial(queries, v.shape[-1], positions, trip.journey.mask, trip.scale)
        partial.show(own)
        return partial

    if len(trip.members) == 1:
        alone = seen_by(q, trip.positions)
        return alone.out, alone.lse
    sent, rows = Cargo(trip, (q.shape[0], q.shape[1]), (q.shape[-1],)), (q.shape[0], q.shape[1])
    results = Cargo(trip, rows, (v.shape[-1], 1))
    gather, journey = sent.leave([q]), trip.journey
    kept = torch.float64 if q.dtype == torch.float64 else torch.float32

    def combine(chunk: int, runs: Span, here: Tensor, come: Tensor) -> None:
        positions = journey.chunks[chunk][runs[0] : runs[1]]
        for (out, lse), (out_b, lse_b) in zip(
            results.runs(here, positions), results.runs(come, positions), strict=True
        ):
            merge(out, lse.squeeze(-1), out_b, lse_b.squeeze(-1))

    def blank(chunk: int, runs: Span) -> Tensor:
        flat = q.new_zeros(results.offsets(chunk)[runs[1]] - results.offsets(chunk)[runs[0]], dtype=kept)
        for _, lse in results.runs(flat, journey.chunks[chunk][runs[0] : runs[1]]):
            lse.fill_(-torch.inf)
        return flat

    reduce = Reduce(
        trip.group, trip.members, journey.back, journey.gives(trip.me), results.offsets, kept, combine, blank
    )
    mine = seen_by(q, trip.positions)
    for part, spans in enumerate(trip.parts):
        reduce.feed(trip.chunk(part), results.pack((mine.out, mine.lse.unsqueeze(-1)), spans))
    for step in gather.arrivals():
        for arrival in map(sent.wanted, step):
            if arrival.first < arrival.last:
                positions = sent.positions(arrival)
                found = seen_by(sent.whole(arrival.data, positions)[0], positions)
                spans = _spans(positions)
                reduce.feed(arrival.chunk, results.pack((found.out, found.lse.unsqueeze(-1)), spans))
    gather.finish()
    out, lse = results.home(reduce.result())
    return out, lse.squeeze(-1)


def backward(
    trip: Trip, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [N, G, S, D], k [N, S, D] and v [N, S, E], summed in the type of `lse`."""
    kept, rows = lse.dtype, (q.shape[0], q.shape[1])
    delta = (grad.to(kept) * out.to(kept)).sum(dim=-1, keepdim=True)
    own = own_segments(trip, k, F.pad(v, (0, _PAD)))
    of_k, of_v = torch.zeros_like(k, dtype=kept), q.new_zeros((*v.shape[:2], v.shape[2] + _PAD), dtype=kept)
    into = own_segments(trip, of_k, of_v)

    def of_queries(tensors: Sequence[Tensor], positions: Positions) -> Tensor:
        queries, slope, sums, deltas = tensors
        wide = torch.cat((slope, slope.new_ones(()).expand(*slope.shape[:3], 1)), dim=-1)
        stand_in = torch.cat((torch.zeros_like(slope, dtype=kept), deltas), dim=-1)
        found = _gradients(wide, queries, stand_in, sums.squeeze(-1), positions, trip)
        found.show(own, into)
        return found.of_q

    tensors = (q, grad, lse.unsqueeze(-1), delta)
    if len(trip.members) == 1:
        return of_queries(tensors, trip.positions), of_k, of_v[..., : v.shape[-1]]
    bits = lse.element_size() // q.element_size()
    sent = Cargo(trip, rows, (q.shape[-1], grad.shape[-1], bits, bits))
    results, journey = Cargo(trip, rows, (q.shape[-1],)), trip.journey
    gather = sent.leave([t if t.dtype == q.dtype else t.contiguous().view(q.dtype) for t in tensors])
    reduce = Reduce(
        trip.group, trip.members, journey.back, journey.gives(trip.me), results.offsets, kept, add, wire=trip.wire
    )
    mine = of_queries(tensors, trip.positions)
    for part, spans in enumerate(trip.parts):
        reduce.feed(trip.chunk(part), results.pack((mine,), spans))
    for step in gather.arrivals():
        for arrival in map(sent.wanted, step):
            if arrival.first < arrival.last:
                positions = sent.positions(arrival)
                queries, slope, *rest = sent.whole(arrival.data, positions)
                sums, deltas = (t if t.dtype == kept else t.contiguous().view(kept) for t in rest)
                found = of_queries((queries, slope, sums, deltas), positions)
                reduce.feed(arrival.chunk, results.pack((found,), _spans(positions)))
    gather.finish()
    (of_q,) = results.home(reduce.result())
    return of_q, of_k, of_v[..., : v.shape[-1]]


def _gradients(grad: Tensor, q: Tensor, out: Tensor, lse: Tensor, positions: Positions, trip: Trip) -> Gradients:
    """With delta for an output: of its last feature, whose gradient is 1 and value 0, it is all that is used."""
    return Gradients(grad, q, out.to(q.dtype), lse, positions, trip.journey.mask, trip.scale)


def _spans(positions: Positions) -> list[tuple[int, int]]:
    cut = ends(positions, 1)
    return list(itertools.pairwise(cut))
