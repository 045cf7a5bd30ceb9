"""`elastic.snapshot=auto`: each way is tried for a few steps of an epoch; the one that takes least is kept."""

from __future__ import annotations

from math import inf

import torch

from trainsys.comm.group import Group

TRIES = 3  # of each way; the best counts, which leaves out the first with its fresh memory


class Trial:
    """Seconds that each of `names` held the steps up here, in the snapshot itself and when its step was applied."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.seconds = names, dict[str, list[float]]({name: [] for name in names})
        self._begun = 0

    def next(self) -> str:
        """Whose turn it is; empty when all have been tried."""
        turn, self._begun = self._begun // TRIES, self._begun + 1
        return self.names[turn] if turn < len(self.names) else ""

    def decide(self, group: Group | None, rank: int) -> tuple[str, dict[str, float]]:
        """The way that takes the slowest rank least, and the seconds of each: equal on all ranks.

        Raises:
            CommError: as an all-reduce does.
        """
        best = torch.tensor([min(self.seconds[name], default=inf) for name in self.names], dtype=torch.float64)
        if group is not None:
            table = torch.zeros(group.size, len(best), dtype=torch.float64)
            table[group.ranks.index(rank)] = best
            group.all_reduce(table)  # one summand of each is not zero, so that any order has the same sum
            best = table.max(0).values
        seconds = dict(zip(self.names, best.tolist(), strict=True))
        return min(self.names, key=lambda name: seconds[name]), seconds
