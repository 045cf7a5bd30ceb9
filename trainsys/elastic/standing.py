"""Where the training state stands: under one layout, or between a failed transition and the next under several."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.book import Book
from trainsys.planner.precision import Precision
from trainsys.space.coverage import check_covered
from trainsys.space.layout import Layout
from trainsys.space.portions import Held, advanced, portions_within
from trainsys.space.tensor import Space


class Standing:
    """The manager's book of it.

    Attributes:
        held: which portions stand where; empty before the first layout.
        portions: into how many the state is cut; they keep their meaning while `held` names several layouts.
    """

    def __init__(self, space: Space, config: RunConfig, book: Book) -> None:
        self.space, self.config = space, config
        self.held, self.portions = book.held, book.portions
        self.broken = book.broken  # destination of a transition that was called off

    def entry(self, epoch: int, target: Layout | None) -> dict[str, Any]:
        """Fields of a `Book`, by which the transition of `epoch`, if one is under way, is called off."""
        broken = self.broken if target is None else Held(epoch, target, 0, 0)
        return {"held": self.held, "portions": self.portions, "broken": broken}

    def committed(self, epoch: int, layout: Layout) -> None:
        self.held, self.portions, self.broken = (Held(epoch, layout, 0, 1),), 1, None

    def called_off(self, epoch: int, target: Layout) -> None:
        """The transition to `target` failed; `settle` tells how far it came."""
        self.broken = Held(epoch, target, 0, 0)

    def settle(self, released: Iterable[tuple[int, int]]) -> None:
        """Take the survivors' (epoch, portions released): who is furthest knows what all of them have."""
        if self.broken is not None:
            portions = max((n for epoch, n in released if epoch == self.broken.epoch), default=0)
            self.held, self.broken = advanced(self.held, replace(self.broken, stop=portions)), None

    def holders(self, members: Collection[int]) -> tuple[int, ...]:
        """Those of `members` that hold a part.

        Raises:
            LostError: some of the state has no living holder.
        """
        for h in self.held:
            check_covered(self.space, h.layout, [r for r in h.layout.ranks if r in members])
        return tuple(sorted(self.ranks.intersection(members)))

    @property
    def ranks(self) -> set[int]:
        """All that held a part when it was written, the dead included."""
        return {r for h in self.held for r in h.layout.ranks}

    def cut(self, target: Layout) -> None:
        """Choose portions for a transition to `target`, unless some are released already."""
        if len(self.held) == 1:
            itemsize, budget = Precision.of(self.config.train.dtype).state, self.config.elastic.staging_mib * 2**20
            self.portions = portions_within(self.space, (self.held[0].layout, target), int(budget), itemsize)
            self.held = (replace(self.held[0], first=0, stop=self.portions),)
