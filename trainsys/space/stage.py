"""A stage of a layout: a part of the model, the teams that hold it, and how ownership is dealt among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

Team = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """Part of the model, and who holds it.

    Attributes:
        spans: intervals ``[first, stop)`` of model blocks (embedding = -1, head = num_layers); more than one under vp.
        teams: in replica order.
        seats: which team owns which piece, see space/seats.py.
        expert_seats: the same for the experts of each class, among the teams of that class; empty: one class.
        vocabulary: intervals of blocks with its parts of the vocabulary (space/vocabulary.py), which are no layers.
    """

    spans: tuple[tuple[int, int], ...]
    teams: tuple[Team, ...]
    seats: tuple[int, ...]
    expert_seats: tuple[tuple[int, ...], ...] = ()
    vocabulary: tuple[tuple[int, int], ...] = ()

    @property
    def ep(self) -> int:
        return max(1, len(self.expert_seats))

    @property
    def intervals(self) -> tuple[tuple[int, int], ...]:
        """Of all its blocks."""
        return self.spans + self.vocabulary

    def has(self, block: int) -> bool:
        """Whether the stage computes `block`."""
        return any(first <= block < stop for first, stop in self.intervals)

    def seats_of(self, expert_class: int | None) -> tuple[int, ...]:
        """The seats among the teams that hold the experts of a class; None: among all."""
        return self.seats if expert_class is None or not self.expert_seats else self.expert_seats[expert_class]

    @cached_property
    def classes(self) -> tuple[int, ...]:
        """Of each team, the class of experts that it holds."""
        if not self.expert_seats:
            return (0,) * len(self.teams)
        found = {team: e for e, seats in enumerate(self.expert_seats) for team in seats}
        return tuple(found[i] for i in range(len(self.teams)))

    def ep_group(self, team: int) -> tuple[int, ...]:
        """The teams that `team` shares the experts with, itself included: one of each class, in order of classes.

        The n-th team of every class belong together, neighbours where teams have their classes in turn.

        Raises:
            ValueError: when the classes have different numbers of teams.
        """
        classes = [self.members(e) for e in range(self.ep)]
        sizes = [len(teams) for teams in classes]
        if len(set(sizes)) > 1:
            count = len(self.teams)
            raise ValueError(
                f"parallel.ep={self.ep} does not divide a stage's {count} replicas; "
                f"set parallel.ep={gcd(self.ep, count)}"
            )
        place = classes[self.classes[team]].index(team)
        return tuple(teams[place] for teams in classes)

    def members(self, expert_class: int | None) -> tuple[int, ...]:
        """The teams that hold the experts of a class; None: all."""
        return self._everybody if expert_class is None or not self.expert_seats else self._by_class[expert_class]

    @cached_property
    def _everybody(self) -> tuple[int, ...]:
        return tuple(range(len(self.teams)))

    @cached_property
    def _by_class(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(sorted(set(seats))) for seats in self.expert_seats)
