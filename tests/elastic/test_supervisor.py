"""The agent's side of the manager: what was said counts, and only silence of the manager's own is held against it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from tests.tiny import tiny
from trainsys.config import load
from trainsys.elastic.manage import Job
from trainsys.elastic.supervisor import Supervisor


class Slow:
    """A launcher that takes its time to look."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def ended(self) -> Sequence[int]:
        time.sleep(self.seconds)
        return (0,)

    def room(self) -> Sequence[int]:
        return ()


class Told:
    """An observer."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def manager_lost(self, cause: str, step: int, heard: float) -> None:
        self.lost.append(cause)


def supervisor(folder: Path, launcher: Slow, observer: Told) -> Supervisor:
    config = load(tiny(folder, "elastic.heartbeat_limit_s=0.1", "elastic.history=false"))
    return Supervisor(Job(config), cast(Any, None), cast(Any, launcher), cast(Any, observer))


def test_what_a_manager_said_before_it_died_counts(tmp_path: Path) -> None:
    told = Told()
    agent = supervisor(tmp_path, Slow(0.0), told)
    ours, theirs = Pipe()
    theirs.send(({"step": 12}, []))
    theirs.send(({"step": 13}, []))
    theirs.close()  # the next word to it meets nobody
    assert not agent._attend(cast(Any, SimpleNamespace(kill=lambda: None)), ours)
    assert agent.book.step == 13
    assert told.lost == ["exit"]


def test_an_agent_that_was_slow_itself_fences_nobody(tmp_path: Path) -> None:
    told = Told()
    agent = supervisor(tmp_path, Slow(0.25), told)
    ours, theirs = Pipe()

    def beat() -> None:
        for _ in range(30):
            theirs.send(None)
            time.sleep(0.02)
        theirs.send(({"over": True}, [("over", ("", ""))]))

    threading.Thread(target=beat, daemon=True).start()
    assert agent._attend(cast(Any, SimpleNamespace(kill=lambda: None)), ours)
    assert told.lost == []
