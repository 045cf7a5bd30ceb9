"""What chunks look like on the wires in one attention, and which of their runs a member uses."""

from __future__ import annotations

from trainsys.comm.flow import Arrival
from trainsys.parallel.sequence.packing import ends
from trainsys.parallel.sequence.trip import Trip
from trainsys.sequence.layouts import Positions


class Freight:
    """Chunks of `width` elements per position."""

    def __init__(self, trip: Trip, width: int) -> None:
        self.trip, self._width = trip, width
        self._ends: dict[int, list[int]] = {}

    def offsets(self, chunk: int) -> list[int]:
        """Where each run of a chunk begins, and where the last one ends."""
        if chunk not in self._ends:
            self._ends[chunk] = ends(self.trip.journey.chunks[chunk], self._width)
        return self._ends[chunk]

    def positions(self, arrival: Arrival) -> Positions:
        """Of the runs that have come."""
        return self.trip.journey.chunks[arrival.chunk][arrival.first : arrival.last]

    def wanted(self, arrival: Arrival) -> Arrival:
        """Of what has arrived, the runs that meet what this member keeps; the rest came for those after it."""
        first, last = self.trip.journey.wants(self.trip.me, arrival.chunk)
        if first == last:
            return Arrival(arrival.chunk, 0, 0, arrival.data[:0])
        offsets = self.offsets(arrival.chunk)
        begin = offsets[arrival.first]
        return Arrival(arrival.chunk, first, last, arrival.data[offsets[first] - begin : offsets[last] - begin])
