"""A journey made by this rank, in one attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainsys.comm.group import Group
from trainsys.parallel.sequence.merge import Segment
from trainsys.parallel.sequence.packing import indices
from trainsys.sequence.journey import Journey
from trainsys.sequence.layouts import Positions


@dataclass(frozen=True, eq=False)
class Trip:
    """What both halves of an attention need to know.

    Attributes:
        group: contains every member.
        members: global ranks in the order of the journey's layout.
        scale: of the scores.
        wire: dtype in which gradients travel; None: that in which they are added up.
        at_once: attend when all has arrived, in one go.
        canonical: attend to the teams in turn, whatever comes first.
        origins: whose positions are here one after the other, if it shall be as if they were apart (`stay`).
    """

    group: Group
    members: tuple[int, ...]
    journey: Journey
    scale: float
    wire: torch.dtype | None = None
    at_once: bool = False
    canonical: bool = False
    origins: tuple[Positions, ...] = ()

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


def own_segments(trip: Trip, k: Tensor, v: Tensor) -> list[Segment]:
    """This member's keys [N, S, D] and values [N, S, E], run by run."""
    found, base = [], 0
    for run in trip.positions:
        rows = slice(base, base + len(run))
        found.append(Segment(run, k[:, rows], v[:, rows]))
        base += len(run)
    return found
