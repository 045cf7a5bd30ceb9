"""Attention in which keys and values travel and queries stay, over any datapath.

Forward: what arrives in a step is attended to while the next steps are on their way. Backward: keys and values travel
again, and their gradients go home behind them, added up on the way (Ring Attention, Liu et al. 2023,
arXiv:2310.01889, for any datapath). Nothing of other teams is kept in between.

    B = microbatch, S = local positions, N = B · kv_heads, G = query heads per key head, D, E = head sizes
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.flow import Arrival, Gather
from trainsys.comm.flow_back import Reduce
from trainsys.comm.group import Group
from trainsys.parallel.sequence.journey import Journey
from trainsys.parallel.sequence.layouts import Positions
from trainsys.parallel.sequence.merge import Gradients, Partial, Segment
from trainsys.parallel.sequence.packing import ends, from_heads, indices, pack, segments, to_heads


@dataclass(frozen=True, eq=False)
class Trip:
    """A journey of one attention, and who makes it.

    Attributes:
        group: contains every member.
        members: global ranks in the order of the journey's layout.
        scale: of the scores.
        wire: dtype in which gradients travel; None: that in which they are added up.
        at_once: attend when all has arrived, in one go.
    """

    group: Group
    members: tuple[int, ...]
    journey: Journey
    scale: float
    wire: torch.dtype | None = None
    at_once: bool = False

    @cached_property
    def me(self) -> int:
        return self.members.index(self.group.rank)

    @property
    def positions(self) -> Positions:
        return self.journey.layout[self.me]

    @cached_property
    def parts(self) -> list[list[tuple[int, int]]]:
        """Of each of this member's chunks, the local rows of its runs."""
        slices = self.journey.out.slices
        own = self.journey.chunks[self.me * slices : (self.me + 1) * slices]
        return [indices(self.positions, part) for part in own]

    def chunk(self, part: int) -> int:
        return self.me * self.journey.out.slices + part


class Keys:
    """The keys and values of a call: what they look like in a chunk."""

    def __init__(self, trip: Trip, k: Tensor, v: Tensor) -> None:
        """k: [N, S, D], v: [N, S, E], contiguous."""
        self.trip, self.k, self.v = trip, k, v
        self.heads, self.size, self.value_size = k.shape[0], k.shape[-1], v.shape[-1]
        self._ends: dict[int, list[int]] = {}

    def offsets(self, chunk: int) -> list[int]:
        if chunk not in self._ends:
            width = self.heads * (self.size + self.value_size)
            self._ends[chunk] = ends(self.trip.journey.chunks[chunk], width)
        return self._ends[chunk]

    def own(self) -> list[Segment]:
        """This member's, run by run."""
        found, base = [], 0
        for run in self.trip.positions:
            rows = slice(base, base + len(run))
            found.append(Segment(run, self.k[:, rows], self.v[:, rows]))
            base += len(run)
        return found

    def leave(self) -> Gather:
        """Begin to travel."""
        trip = self.trip
        chunks = [pack((self.k, self.v), spans) for spans in trip.parts]
        return Gather(trip.group, trip.members, trip.journey.there, chunks, self.offsets)

    def arrived(self, arrival: Arrival) -> list[Segment]:
        runs = self.trip.journey.chunks[arrival.chunk][arrival.first : arrival.last]
        return segments(arrival.data, runs, self.heads, self.size, self.value_size)


class _Attention(torch.autograd.Function):
    """[B, S, heads, D], [B, S, kv_heads, D], [B, S, kv_heads, E] -> [B, S, heads, E]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, trip: Trip) -> Tensor:
        kv_heads = k.shape[2]
        keys = Keys(trip, to_heads(k, kv_heads).squeeze(1), to_heads(v, kv_heads).squeeze(1))
        partial = Partial(to_heads(q, kv_heads), v.shape[-1], trip.positions, trip.journey.mask, trip.scale)
        attend(trip, keys, partial.show)
        out = partial.out.to(q.dtype)
        ctx.trip, ctx.kv_heads = trip, kv_heads
        ctx.save_for_backward(partial.q, keys.k, keys.v, out, partial.lse)
        return from_heads(out, q.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        trip, batch = ctx.trip, grad.shape[0]
        found = Gradients(
            to_heads(grad, ctx.kv_heads), q, out, lse, trip.positions, trip.journey.mask, trip.scale
        )  # fmt: skip
        of_k, of_v = gradients_of_keys(trip, Keys(trip, k, v), found)
        of_q = from_heads(found.of_q.to(q.dtype), batch)
        return of_q, *(from_heads(t.to(k.dtype).unsqueeze(1), batch) for t in (of_k, of_v)), None


def attend(trip: Trip, keys: Keys, show: Callable[[list[Segment]], None]) -> None:
    """Show all keys, the own ones first; the rest as it arrives, step by step."""
    if len(trip.members) == 1:
        show(keys.own())
        return
    gather = keys.leave()
    if not trip.at_once:
        show(keys.own())
    late = [] if not trip.at_once else keys.own()
    for step in gather.arrivals():
        come = [segment for arrival in step for segment in keys.arrived(arrival)]
        if trip.at_once:
            late += come
        else:
            show(come)
    if late:
        show(sorted(late, key=lambda segment: segment.positions.start))
    gather.finish()


def gradients_of_keys(trip: Trip, keys: Keys, found: Gradients) -> tuple[Tensor, Tensor]:
    """Of this member's keys [N, S, D] and values [N, S, E], from all queries; those of the queries are in `found`."""
    kept = found.of_q.dtype
    of_k, of_v = torch.zeros_like(keys.k, dtype=kept), torch.zeros_like(keys.v, dtype=kept)
    own = Keys(trip, of_k, of_v)
    if len(trip.members) == 1:
        found.show(keys.own(), own.own())
        return of_k, of_v
    gather, journey = keys.leave(), trip.journey
    reduce = Reduce(
        trip.group, trip.members, journey.back, journey.gives(trip.me), keys.offsets, found.of_q, trip.wire or kept
    )
    found.show(keys.own(), own.own())
    for part, spans in enumerate(trip.parts):
        reduce.feed(trip.chunk(part), pack((of_k, of_v), spans))
    for step in gather.arrivals():
        wanted = [_wanted(journey, trip.me, arrival, keys) for arrival in step]
        grads = [Arrival(a.chunk, a.first, a.last, torch.zeros_like(a.data, dtype=kept)) for a in wanted]
        found.show(
            [segment for arrival in wanted for segment in keys.arrived(arrival)],
            [segment for arrival in grads for segment in keys.arrived(arrival)],
        )
        for arrival in grads:
            if arrival.first < arrival.last:
                reduce.feed(arrival.chunk, arrival.data)
    gather.finish()
    sums = reduce.result()
    for part, spans in enumerate(trip.parts):
        chunk = trip.chunk(part)
        for (first, last), segment in zip(spans, keys.arrived(_whole(chunk, journey, sums[chunk])), strict=True):
            of_k[:, first:last], of_v[:, first:last] = segment.k, segment.v
    return of_k, of_v


def _wanted(journey: Journey, me: int, arrival: Arrival, keys: Keys) -> Arrival:
    """Of what has arrived, the runs that this member uses; the rest came for those after it."""
    first, last = journey.wants(me, arrival.chunk)
    offsets = keys.offsets(arrival.chunk)
    if first == last:
        return Arrival(arrival.chunk, 0, 0, arrival.data[:0])
    begin = offsets[arrival.first]
    return Arrival(arrival.chunk, first, last, arrival.data[offsets[first] - begin : offsets[last] - begin])


def _whole(chunk: int, journey: Journey, data: Tensor) -> Arrival:
    return Arrival(chunk, 0, len(journey.chunks[chunk]), data)


def travel_keys(q: Tensor, k: Tensor, v: Tensor, trip: Trip) -> Tensor:
    """Attention of this member's queries to everybody's keys.

    Args:
        q: [B, S, heads, D]; k: [B, S, kv_heads, D]; v: [B, S, kv_heads, E], of this member's positions.

    Returns:
        [B, S, heads, E].
    """
    out: Tensor = _Attention.apply(q, k, v, trip)  # type: ignore[no-untyped-call]
    return out
