"""Attention in which keys and values travel and queries stay, over any datapath.

Forward: what arrives in a step is attended to while the next steps are on their way. Backward: keys and values travel
again, and their gradients go home behind them, added up on the way (Ring Attention, Liu et al. 2023,
arXiv:2310.01889, for any datapath). Nothing of other teams is kept in between.

    B = microbatch, S = local positions, N = B · kv_heads, G = query heads per key head, D, E = head sizes
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainsys.comm.flow import Arrival, Gather
from trainsys.comm.flow_back import Reduce, add
from trainsys.parallel.sequence.freight import Freight
from trainsys.parallel.sequence.in_turn import Waiting, joined, taken_apart
from trainsys.parallel.sequence.merge import Gradients, Partial, Segment
from trainsys.parallel.sequence.packing import pack, segments
from trainsys.parallel.sequence.trip import Trip, own_segments


class Keys(Freight):
    """The keys and values of a call: what they look like in a chunk."""

    def __init__(self, trip: Trip, k: Tensor, v: Tensor) -> None:
        """k: [N, S, D], v: [N, S, E], contiguous."""
        self.k, self.v = k, v
        self.heads, self.size, self.value_size = k.shape[0], k.shape[-1], v.shape[-1]
        super().__init__(trip, self.heads * (self.size + self.value_size))

    def own(self) -> list[Segment]:
        return own_segments(self.trip, self.k, self.v)

    def leave(self) -> Gather:
        """Begin to travel."""
        trip = self.trip
        chunks = [pack((self.k, self.v), spans) for spans in trip.parts]
        return Gather(trip.group, trip.members, trip.journey.there, chunks, self.offsets)

    def segments(self, arrival: Arrival) -> list[Segment]:
        return segments(arrival.data, self.positions(arrival), self.heads, self.size, self.value_size)


def forward(trip: Trip, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """q [N, G, S, D], k [N, S, D], v [N, S, E] -> out [N, G, S, E] and lse [N, G, S], in the type that merges."""
    keys = Keys(trip, k, v)
    partial = Partial(q, v.shape[-1], trip.positions, trip.journey.mask, trip.scale)
    if len(trip.members) == 1:
        partial.show(keys.own())
        return partial.out, partial.lse
    gather = keys.leave()
    if trip.canonical:
        partial.show(keys.own())
        for source in Waiting(trip).sources(gather):
            partial.show(joined([keys.segments(keys.wanted(arrival)) for arrival in source]))
        gather.finish()
        return partial.out, partial.lse
    late = keys.own() if trip.at_once else []
    if not trip.at_once:
        partial.show(keys.own())
    for step in gather.arrivals():
        come = [segment for arrival in step for segment in keys.segments(keys.wanted(arrival))]
        if trip.at_once:
            late += come
        else:
            partial.show(come)
    if trip.at_once:
        partial.show(sorted(late, key=lambda segment: segment.positions.start))
    gather.finish()
    return partial.out, partial.lse


def backward(
    trip: Trip, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [N, G, S, D], k [N, S, D] and v [N, S, E], summed in the type of `lse`."""
    kept, journey, keys = lse.dtype, trip.journey, Keys(trip, k, v)
    found = Gradients(grad, q, out, lse, trip.positions, journey.mask, trip.scale)
    own = Keys(trip, torch.zeros_like(k, dtype=kept), torch.zeros_like(v, dtype=kept))
    if len(trip.members) == 1:
        found.show(keys.own(), own.own())
        return found.of_q, own.k, own.v
    gather = keys.leave()
    reduce = Reduce(
        trip.group, trip.members, journey.back, journey.gives(trip.me), keys.offsets, kept, add, wire=trip.wire
    )
    found.show(keys.own(), own.own())
    for part, spans in enumerate(trip.parts):
        reduce.feed(trip.chunk(part), pack((own.k, own.v), spans))
    for step in Waiting(trip).sources(gather) if trip.canonical else gather.arrivals():
        wanted = [keys.wanted(arrival) for arrival in step]
        if trip.canonical:
            parts = [keys.segments(arrival) for arrival in wanted]
            whole = joined(parts)
            into = [Segment(s.positions, *(torch.zeros_like(t, dtype=kept) for t in s[1:])) for s in whole]
            found.show(whole, into)
            for arrival, data in zip(wanted, taken_apart(into, parts), strict=True):
                reduce.feed(arrival.chunk, data)
            continue
        grads = [Arrival(a.chunk, a.first, a.last, torch.zeros_like(a.data, dtype=kept)) for a in wanted]
        found.show(
            [segment for arrival in wanted for segment in keys.segments(arrival)],
            [segment for arrival in grads for segment in keys.segments(arrival)],
        )
        for arrival in grads:
            if arrival.first < arrival.last:
                reduce.feed(arrival.chunk, arrival.data)
    gather.finish()
    for chunk, data in reduce.result().items():
        spans = trip.parts[chunk - trip.chunk(0)]
        runs = keys.segments(Arrival(chunk, 0, len(spans), data))
        for (first, last), segment in zip(spans, runs, strict=True):
            own.k[:, first:last], own.v[:, first:last] = segment.k, segment.v
    return found.of_q, own.k, own.v
