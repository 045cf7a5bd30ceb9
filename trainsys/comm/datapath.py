"""A datapath: which chunk goes over which link in which step of a collective, as plain data.

The all-gather is the one that is written down. A reduce-scatter is an all-gather backwards (every send turned round,
last step first, with addition at each arrival), an all-reduce is both. What a datapath promises is checked by
`datapath_check` before use, timed by `datapath_time` on any wires, and run by `flow` without deciding anything. Imports
no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Send(NamedTuple):
    """`chunk` goes from member `src` to member `dst` in `step`; it must be at `src` by the end of the step before."""

    step: int
    chunk: int
    src: int
    dst: int


@dataclass(frozen=True, eq=False)
class Datapath:
    """An all-gather among `size` members, each of whose tensors is cut in `slices` nearly equal parts.

    Chunk ``source · slices + part`` is part `part` of member `source`'s tensor. Steps order the sends of a member and
    say what waits for what; nobody waits for a step of others to end.

    Attributes:
        sends: int32 [M, 4], rows of `Send`, sorted by step.
    """

    name: str
    size: int
    slices: int
    sends: np.ndarray

    @classmethod
    def of(cls, name: str, size: int, slices: int, sends: Iterable[Send]) -> Datapath:
        """From sends in any order."""
        rows = np.array(sorted(sends), dtype=np.int32).reshape(-1, 4)
        return cls(name, size, slices, rows)

    @property
    def num_chunks(self) -> int:
        return self.size * self.slices

    @property
    def num_steps(self) -> int:
        return int(self.sends[-1, 0]) + 1 if len(self.sends) else 0

    def source(self, chunk: int) -> int:
        """The member that has `chunk` at first."""
        return chunk // self.slices

    def backwards(self) -> Datapath:
        """The reduce-scatter: every member begins with its own share of every chunk, sources end with the sums."""
        rows = self.sends[::-1].copy()
        rows[:, 0] = self.num_steps - 1 - rows[:, 0]
        rows[:, [2, 3]] = rows[:, [3, 2]]
        return Datapath(f"{self.name} backwards", self.size, self.slices, rows[np.argsort(rows[:, 0], kind="stable")])
