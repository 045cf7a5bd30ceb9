"""What a simulated step was: its time, and per lane its events, activations and bytes."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.footprint import Footprint

_FREES = frozenset({Kind.B, Kind.W})
_RECEIVES = frozenset({Kind.RECV_F, Kind.RECV_B})  # they only post


class Event(NamedTuple):
    """One interval of one lane, in seconds from the start of the step; a SEND's lasts until its arrival."""

    lane: int
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Simulation:
    """The outcome.

    Attributes:
        step_s: from 0 to the end of the last lane's last action.
        busy_s: seconds of compute, per lane.
        peak_activations: most (stage, microbatch) activations alive at once, per lane: F allocates, B or W frees.
        lanes: the schedule's.
        starts, ends: seconds of every action, lane after lane; 0 for a RECV, which takes none.
    """

    step_s: float
    busy_s: tuple[float, ...]
    peak_activations: tuple[int, ...]
    lanes: tuple[tuple[Action, ...], ...] = field(repr=False)
    starts: array[float] = field(repr=False)
    ends: array[float] = field(repr=False)

    @property
    def bubble(self) -> float:
        """Share of the lanes' time without compute: 1 - sum(busy) / (lanes · step)."""
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.step_s) if self.step_s else 0.0

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """Intervals of compute, transfers (SEND, of the sender) and copies (OFFLOAD, RELOAD), by start and lane."""
        events = [event for lane in range(len(self.lanes)) for event in self.events_of(lane)]
        return tuple(sorted(events, key=lambda event: event.start_s))

    def events_of(self, lane: int) -> list[Event]:
        """Those of one lane, in the order of its list."""
        first = sum(map(len, self.lanes[:lane]))
        spans = zip(self.lanes[lane], self.starts[first:], self.ends[first:], strict=False)
        return [Event(lane, action, start, end) for action, start, end in spans if action.kind not in _RECEIVES]

    def activations(self, lane: int) -> list[tuple[float, int]]:
        """The lane's memory over time: (seconds, activations alive from then on)."""
        curve, alive = [(0.0, 0)], 0
        for event in self.events_of(lane):
            if event.action.kind is Kind.F:
                alive += 1
                curve.append((event.start_s, alive))
            elif event.action.kind in _FREES:
                alive -= 1
                curve.append((event.end_s, alive))
        return curve

    def memory(self, lane: int, footprint: Footprint) -> list[tuple[float, float]]:
        """The lane's memory over time: (seconds, bytes that its microbatches keep from then on)."""
        return footprint.curve([event[1:] for event in self.events_of(lane)])

    def peak_bytes(self, lane: int, footprint: Footprint) -> float:
        """The most of `memory`."""
        return max(alive for _, alive in self.memory(lane, footprint))
