"""The history of a run: every process writes down what it did, for `elastic.check` to hold against the invariants.

One file per process, ``history/rank-2-RUN.jsonl`` and ``history/manager-RUN.jsonl``, where RUN names the attempt. What
must not be lost is written *before* it is said to anybody: a rank's samples before its proposal, a verdict before it is
broadcast. So whatever others act on is in a file, and a process that is killed loses at most the line it is writing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from trainsys.elastic.files import JsonLines
from trainsys.space.layout import Layout

FOLDER = "history"


class History:
    """One process's file. Nothing happens until it is opened, or its lines are taken by somebody else."""

    def __init__(self, take: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self._take = take

    @property
    def on(self) -> bool:
        return self._take is not None

    def open(self, run_dir: Path | str, who: str, run: str, **facts: Any) -> None:
        """Begin ``WHO-RUN.jsonl``, with a line about this process."""
        folder = Path(run_dir) / FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._take = JsonLines(folder / f"{who}-{run}.jsonl", False, lambda sentence: None).add
        except OSError:
            return  # a full disk stops no training; the record of the run tells of it, and a check of what is missing
        self.begin(run, **facts)

    def begin(self, run: str, **facts: Any) -> None:
        """The line about this process."""
        self.add("started", run=run, pid=os.getpid(), host=platform.node(), **facts)

    def add(self, event: str, **facts: Any) -> None:
        """One line, on its way to the disk when this returns: the kernel has it, though this process be killed."""
        if self._take is not None:
            self._take({"event": event, "t_s": time.monotonic(), "unix_s": time.time(), **facts})


def fingerprint(layout: Layout) -> str:
    """Names a layout: who holds what, where."""
    return hashlib.sha256(json.dumps(layout.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def runs(positions: Iterable[int]) -> list[list[int]]:
    """``[[first, count], …]`` of numbers, in their order: 4 5 6 9 is [[4, 3], [9, 1]]."""
    found: list[list[int]] = []
    for position in positions:
        if found and position == sum(found[-1]):
            found[-1][1] += 1
        else:
            found.append([position, 1])
    return found


def open_files() -> int:
    """File descriptors of this process, but for the one that this look takes."""
    return len(os.listdir("/proc/self/fd")) - 1


def threads() -> int:
    """Threads of this process, those of libraries among them."""
    return len(os.listdir("/proc/self/task"))
