"""What a manager must know to take over from one that died: entered with the agent before anybody is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from trainsys.config import ParallelConfig
from trainsys.elastic.messages import Verdict
from trainsys.planner.device import Rate
from trainsys.space.layout import Layout
from trainsys.space.portions import Held


@dataclass(frozen=True)
class Book:
    """The durable part of a `Manager`.

    Attributes:
        run: names the attempt in the histories.
        rate: of the devices, measured before ranks loaded the machine.
        epoch: declared last.
        step: committed optimizer steps.
        stands: epoch of `layout`, -1 before the first.
        layout, parallel: committed last.
        participants: who was told of them.
        verdict: on step `step` - 1, which some of `layout`'s ranks may not have heard.
        held, portions, broken: of `Standing`.
        members: (rank, node, pid) of who is connected.
        started: ranks on their way.
        gone: ranks that were lost or let go, and may not come back.
        wrong: transitions in a row in which what arrived was not what left.
        lookout: what a `Lookout` remembers.
        over: everybody is told to leave.
        failure: why training could not go on; empty after a clean end.
        heard: when the manager before last said something, CLOCK_MONOTONIC; 0 if there was none.
    """

    run: str = ""
    rate: Rate | None = None
    epoch: int = -1
    step: int = 0
    stands: int = -1
    layout: Layout | None = None
    parallel: ParallelConfig | None = None
    participants: tuple[int, ...] = ()
    verdict: Verdict | None = None
    held: tuple[Held, ...] = ()
    portions: int = 1
    broken: Held | None = None
    members: tuple[tuple[int, int, int], ...] = ()
    started: tuple[int, ...] = ()
    gone: frozenset[int] = frozenset()
    next_rank: int = 0
    leaving: frozenset[int] = frozenset()
    joins: tuple[int, ...] = ()
    respawns: tuple[tuple[float, int], ...] = ()
    saved_step: int = 0
    save_due: bool = False
    wrong: int = 0
    stop_requested: bool = False
    lookout: Any = None
    over: bool = False
    failure: str = ""
    heard: float = 0.0


def difference(old: Book, new: Book) -> dict[str, Any]:
    """The fields of `new` that differ, by name; what is the same object is not compared."""
    pairs = ((f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(Book))
    return {name: now for name, was, now in pairs if now is not was and now != was}
