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
from trainsys.elastic.faults.notes import read_notes

BY_ITSELF = "by itself"
_ASLEEP_S = 0.3  # after its eviction: the others have gone on
_AWAKE_S = 2.0  # in which it must end by itself


class Zombies:
    """The ranks of a schedule that wake up.

    Args:
        folder: where notes of faults are.
    """

    def __init__(self, faults: Sequence[FaultEvent], folder: Path) -> None:
        self._ranks, self._folder = {e.rank for e in faults if e.kind == "wake"}, folder
        self._threads: list[threading.Thread] = []

    def spare(self, rank: int, process: BaseProcess) -> bool:
        """Instead of killing `rank`: have it woken soon. False: it is to be killed as ever."""
        if rank not in self._ranks:
            return False
        self._ranks.discard(rank)
        thread = threading.Thread(target=self._wake, args=(rank, process), daemon=True, name=f"zombie-{rank}")
        self._threads.append(thread)
        thread.start()
        return True

    def join(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` seconds until it is known how all of them ended."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _wake(self, rank: int, process: BaseProcess) -> None:
        time.sleep(_ASLEEP_S)
        with suppress(ProcessLookupError):
            os.kill(process.pid or 0, signal.SIGCONT)
        woken = time.monotonic()
        by_itself = bool(wait([process.sentinel], _AWAKE_S))
        lasted_s = time.monotonic() - woken
        if not by_itself:
            process.kill()
        record = {"rank": rank, "awake_s": lasted_s, "ended": BY_ITSELF if by_itself else "killed"}
        whole = self._folder / f".{rank}.woken.new"  # who looks meanwhile sees nothing
        whole.write_text(json.dumps(record))
        whole.replace(self._folder / f"{rank}.woken")


def read_zombies(folder: Path) -> list[dict[str, Any]]:
    """Of every ``wake`` that struck: rank, for how many seconds it was awake, and how it ended, of which `BY_ITSELF` is
    as it should."""
    woken = [json.loads(path.read_text()) for path in sorted(folder.glob("*.woken"))]
    asleep = {note["rank"] for note in read_notes(folder) if note["kind"] == "wake"} - {z["rank"] for z in woken}
    return [*woken, *({"rank": rank, "awake_s": 0.0, "ended": "never woke up"} for rank in sorted(asleep))]
