"""Keys in canonical order, whatever they travel over: a team's own, then those of the team before it, and so on round.

So the order in which partial results are merged depends on the teams alone, not on the method; with the gradients added
up along the ring of cp indices (`comm/datapath_home.py`), no bit of an attention depends on the method. What comes too
early waits: that is the price.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainsys.comm.flow import Arrival, Gather
from trainsys.parallel.sequence.merge import Segment
from trainsys.parallel.sequence.trip import Trip


class Waiting:
    """Chunks by source until all that is wanted of a source is here."""

    def __init__(self, trip: Trip) -> None:
        self._trip, self._here = trip, dict[int, Arrival]()
        size, slices = len(trip.members), trip.journey.out.slices
        self.turn = [(trip.me - i) % size for i in range(1, size)]
        spans = trip.journey.gives(trip.me)
        self._chunks = {s: [c for c in range(s * slices, (s + 1) * slices) if c in spans] for s in self.turn}

    def sources(self, gather: Gather) -> Iterator[list[Arrival]]:
        """The wanted chunks of each source that has any, in turn; before and between, what comes is received."""
        steps = gather.arrivals()
        for source in self.turn:
            wanted = self._chunks[source]
            while not all(chunk in self._here for chunk in wanted):
                self._here |= {arrival.chunk: arrival for arrival in next(steps)}
            if wanted:
                yield [self._here.pop(chunk) for chunk in wanted]
        for _ in steps:
            pass


def joined(parts: list[list[Segment]]) -> list[Segment]:
    """The runs of a source from those of its slices, which have equally many runs."""
    if len(parts) == 1:
        return parts[0]
    found = []
    for pieces in zip(*parts, strict=True):
        whole = [piece for piece in pieces if piece.positions]
        if whole:
            first, last = whole[0].positions, whole[-1].positions
            found.append(
                Segment(
                    range(first.start, last[-1] + 1, first.step if len(first) > 1 else max(last.step, 1)),
                    torch.cat([piece.k for piece in whole], dim=1),
                    torch.cat([piece.v for piece in whole], dim=1),
                )
            )
    return found


def taken_apart(grads: list[Segment], parts: list[list[Segment]]) -> list[Tensor]:
    """The gradients of a source, flat, slice by slice: the inverse of `joined`."""
    flat: list[list[Tensor]] = [[] for _ in parts]
    whole = iter(grads)
    for pieces in zip(*parts, strict=True):
        if not any(piece.positions for piece in pieces):
            continue
        grad, at = next(whole), 0
        for slot, piece in zip(flat, pieces, strict=True):
            rows = slice(at, at + len(piece.positions))
            slot += [grad.k[:, rows].reshape(-1), grad.v[:, rows].reshape(-1)]
            at = rows.stop
    return [torch.cat(slot) for slot in flat]
