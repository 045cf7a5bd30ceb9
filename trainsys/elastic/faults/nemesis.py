"""What a kind of fault is: how it is written, what it does to its victim, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from trainsys.elastic.faults.event import FaultEvent

if TYPE_CHECKING:
    from trainsys.comm.communicator import Communicator
    from trainsys.config import RunConfig
    from trainsys.parallel.state import FlatState
    from trainsys.space.layout import Layout
    from trainsys.space.tensor import Space


class NothingThere(Exception):
    """What a fault is to strike does not exist at that moment."""


class Victim(Protocol):
    """What a strike may touch of the rank it happens in; a `Worker` is one."""

    config: RunConfig
    rank: int
    comm: Communicator
    space: Space
    state: FlatState | None
    layout: Layout | None


def notes_of(victim: Victim) -> Path:
    """Folder of the notes of a run's faults."""
    return Path(victim.config.run_dir) / "faults"


@dataclass(frozen=True)
class Nemesis:
    """One kind of fault.

    Attributes:
        form: how it is written.
        says: what it does, in a few words.
        strike: carries it out inside the victim's process, or raises NothingThere; None: somebody else does, or it
            lasts longer.
        who: whom it names.
        tail: what may follow the name.
        fatal: the rank is out of the run afterwards.
        changes: a change of layout follows.
        of_manager: ``manager`` may be named instead of a rank.
        local: it takes that all ranks are processes of this machine, which the agent started itself.
    """

    form: str
    says: str
    strike: Callable[[FaultEvent, Victim], None] | None = None
    who: Literal["", "rank", "pair"] = "rank"
    tail: Literal["", "phase", "scale"] = "phase"
    fatal: bool = False
    changes: bool = False
    of_manager: bool = False
    local: bool = False
