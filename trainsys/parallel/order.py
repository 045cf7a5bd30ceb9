"""In which order every rank computes with its blocks: what both ends of a one-sided transfer know without asking."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from trainsys.schedule.actions import VOCABULARY, Action, Kind
from trainsys.schedule.schedule import Schedule
from trainsys.space.layout import Layout


class Order:
    """Any rank's compute, down to the *parts* of its stages: all blocks at once, under ZeRO-3 each by itself.

    Under vp a rank runs several of the schedule's stages: `Layout.runs`.
    """

    def __init__(self, layout: Layout, schedule: Schedule) -> None:
        self._layout, self._schedule = layout, schedule
        self.together = cache(self._together)

    def parts(self, stage: int) -> list[range]:
        """The blocks of a stage of the schedule, cut into what is computed at a time, in the order of the forward."""
        first, stop = self._layout.runs[stage][1]
        return [range(b, b + 1) for b in range(first, stop)] if self._layout.zero == 3 else [range(first, stop)]

    def _computes(self, rank: int) -> Iterator[tuple[Action, list[range]]]:
        """The compute actions of a rank's lane, each with its parts in the order of computation."""
        stage, (replica, _) = self._layout.where(rank)[0], self._layout.replica_of(rank)
        for action in self._schedule.lanes[self._schedule.placement[stage, replica]]:
            if action.is_compute and action.kind not in VOCABULARY:
                yield action, self.parts(action.stage)[:: 1 if action.kind in (Kind.F, Kind.R) else -1]

    def uses(self, rank: int) -> list[range]:
        """The parts of a rank as it computes with their weights in one step, forward and backward. W needs none."""
        return [part for a, parts in self._computes(rank) if a.kind is not Kind.W for part in parts]

    def backwards(self, rank: int) -> list[tuple[int, range]]:
        """(microbatch, part) of a rank as their gradients are made."""
        return [
            (a.microbatch, part) for a, parts in self._computes(rank) if a.kind in (Kind.B, Kind.W) for part in parts
        ]

    def cp_index(self, rank: int) -> int:
        """Which part of every sequence a rank has."""
        return self._layout.replica_of(rank)[1]

    def _together(self, rank: int, microbatch: int) -> tuple[tuple[int, int], ...]:
        """What the members of a rank's ep group run while it runs `microbatch`, in order of classes: (microbatch, cp
        index) of each.

        The group runs in lockstep: the same actions at the same places of the lanes.
        """
        stage, team, shard = self._layout.where(rank)
        own = self._layout.stages[stage]
        members = [own.teams[i][shard] for i in own.ep_group(team)]
        lanes = [[mb for mb, _ in self.backwards(member)] for member in members]
        place = lanes[members.index(rank)].index(microbatch)
        return tuple((lane[place], self.cp_index(member)) for lane, member in zip(lanes, members, strict=True))
