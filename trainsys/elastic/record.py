"""What happened: the observer interface of the manager, and plain records of changes and faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from trainsys.config import ParallelConfig
from trainsys.elastic.messages import Proposal
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout


@dataclass(frozen=True)
class Change:
    """One change of membership. Times are CLOCK_MONOTONIC seconds of the manager's machine.

    Attributes:
        step: optimizer steps committed when it began; the step in flight is redone.
        began: when the manager called the old epoch off.
        redo: whether a step was under way, which is done again.
        decide_s: time that choosing the layout took.
        transfer_s: longest time any rank took to connect, transfer and verify.
    """

    epoch: int
    step: int
    reason: str
    before: Layout | None
    began: float
    after: Layout | None = None
    parallel: ParallelConfig | None = None
    bytes_moved: int = 0
    transfer_s: float = 0.0
    decide_s: float = 0.0
    redo: bool = False


class Observer(Protocol):
    """Told by the manager, in order; must be quick."""

    def joined(self, rank: int, node: int) -> None: ...

    def never_joined(self, rank: int, why: str) -> None: ...

    def lost(self, rank: int, cause: str, step: int) -> None: ...

    def left(self, rank: int, step: int) -> None: ...

    def changed(self, change: Change) -> None: ...

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None: ...

    def saved(self, step: int, path: str, error: str) -> None: ...

    def manager_lost(self, cause: str, step: int, heard: float) -> None:
        """Another takes over. `heard`: when it last said something, CLOCK_MONOTONIC."""
