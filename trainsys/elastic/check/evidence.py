"""The state of a run at one step, put together from what the ranks wrote down about their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from trainsys.elastic.check.record import Attempt, Line

MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Evidence:
    """Hashes of the whole state after `steps` steps.

    Attributes:
        place: the manager's commit of the epoch.
        lines: by rank; `expected` are those that should have one, or have died since.
        change: from a change of layout, and not from a running epoch.
    """

    attempt: Attempt
    epoch: int
    steps: int
    place: Line
    lines: dict[int, Line]
    expected: tuple[int, ...]
    change: bool

    @property
    def complete(self) -> bool:
        return set(self.expected) <= self.lines.keys()

    def sums(self, key: str) -> dict[str, int]:
        """``tensor.slot`` -> hash over all ranks; `key` is ``before`` or ``after``."""
        total: dict[str, int] = {}
        for line in self.lines.values():
            for name, value in line[key].items():
                total[name] = (total.get(name, 0) + int(value, 16)) & MASK
        return total


def evidence(attempt: Attempt) -> Iterator[Evidence]:
    """Of every change that was committed, and of every step after which the state was hashed."""
    for epoch, switch in attempt.switched.items():
        staged = {rank: line for rank, line in attempt.of_ranks("staged") if line["epoch"] == epoch}
        members = tuple(attempt.opened[epoch]["participants"])
        yield Evidence(attempt, epoch, switch["step"], switch, staged, members, True)
        hashed: dict[int, dict[int, Line]] = {}
        for rank, line in attempt.of_ranks("hashed"):
            if line["epoch"] == epoch:
                hashed.setdefault(line["steps"], {})[rank] = line
        for steps, lines in sorted(hashed.items()):
            yield Evidence(attempt, epoch, steps, switch, lines, tuple(switch["ranks"]), False)
