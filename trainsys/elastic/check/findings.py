"""What a check says: how much it looked at, and what is wrong where."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from trainsys.elastic.check.record import Line, Record


@dataclass(frozen=True)
class Case:
    """What is checked.

    Attributes:
        against: the history of the same training without faults; None: there is none.
        floor: relative difference of losses and norms that passes for equal; 0: the bits.
        slack_s: by which a bound in seconds may be exceeded.
    """

    record: Record
    against: Record | None = None
    floor: float = 0.0
    slack_s: float = 0.1


@dataclass(frozen=True)
class Violation:
    where: str  # file:line
    text: str


@dataclass
class Findings:
    """Of one invariant.

    Attributes:
        decisive: of the counts, those without which nothing is known of the invariant.
        checked: what was looked at -> how often.
    """

    decisive: tuple[str, ...]
    checked: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    def count(self, what: str, n: int = 1) -> None:
        self.checked[what] += n

    def wrong(self, place: Line | str, text: str) -> None:
        self.violations.append(Violation(place if isinstance(place, str) else place.where, text))

    @property
    def holds(self) -> bool | None:
        """None: the history says nothing about it."""
        if self.violations:
            return False
        return True if any(self.checked[what] for what in self.decisive) else None
