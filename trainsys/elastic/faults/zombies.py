"""Ranks that nobody killed though they were evicted: the second half of ``wake``.

A launcher that cannot fence (a machine that does not answer) leaves the frozen process where it is; later it wakes up
and goes on where it was. It must find out by itself: its connection to the manager has been closed, so it ends.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trainsys.elastic.faults.event import FaultEvent

_ASLEEP_S = 0.3  # after its eviction: the others have gone on
_AWAKE_S = 2.0  # in which it must end by itself


class Zombies:
    """The ranks of a schedule that wake up.

    Args:
        folder: where notes of faults are.
    """

    def __init__(self, faults: Sequence[FaultEvent], folder: Path) -> None:
        self._ranks, self._folder = {e.rank for e in faults if e.kind == "wake"}, folder

    def spare(self, rank: int, process: BaseProcess) -> bool:
        """Instead of killing `rank`: have it woken soon. False: it is to be killed as ever."""
        if rank not in self._ranks:
            return False
        self._ranks.discard(rank)
        threading.Thread(target=self._wake, args=(rank, process), daemon=True, name=f"zombie-{rank}").start()
        return True

    def _wake(self, rank: int, process: BaseProcess) -> None:
        time.sleep(_ASLEEP_S)
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGCONT)
        woken = time.monotonic()
        by_itself = bool(wait([process.sentinel], _AWAKE_S))
        lasted_s = time.monotonic() - woken
        if not by_itself:
            process.kill()
        record = {"rank": rank, "awake_s": lasted_s, "ended": "by itself" if by_itself else "killed"}
        (self._folder / f"{rank}.woken").write_text(json.dumps(record))


def read_zombies(folder: Path) -> list[dict[str, Any]]:
    """Of all that woke up: rank, for how many seconds they were awake, and whether they ended by themselves."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.woken"))]
