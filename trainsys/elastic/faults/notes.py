"""The notes that faults leave: who struck whom, when. Written just before the strike, whoever carries it out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from trainsys.elastic.faults.event import FaultEvent


def announce(folder: Path, rank: int) -> None:
    """Write down which process a rank is, for those that wait for it or shall be cut off from it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank}.pid").write_text(str(os.getpid()))


def process_of(folder: Path, rank: int) -> int | None:
    """Process of a rank, once it has announced itself."""
    try:
        return int((folder / f"{rank}.pid").read_text())
    except (OSError, ValueError):
        return None


def write_note(folder: Path, event: FaultEvent, rank: int, step: int, fatal: bool) -> None:
    """``RANK.json`` of a rank that will be lost, which the record looks for; else ``RANK-KIND-STEP.json``,
    or ``RANK+PEER-KIND-STEP.json``.

    Args:
        rank: that strikes or is struck; -1: all of them.
        fatal: the rank will be lost.
        step: in which it happens, of a change of layout that of the next step.
    """
    name = _name(event, rank, fatal)
    record = {
        "kind": event.kind,
        "rank": rank,
        "phase": event.phase,
        "step": step,
        "time": time.monotonic(),
        "event": str(event),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / f"{name}.json", record)


def withdraw_note(folder: Path, event: FaultEvent, rank: int, why: str) -> None:
    """The fault found nothing to strike. Of one that its rank outlives."""
    note = folder / f"{_name(event, rank, False)}.json"
    _write(note.with_suffix(".nothing"), {"event": str(event), "why": why})
    note.unlink(missing_ok=True)


def nothing_there(folder: Path) -> dict[str, str]:
    """Faults of a run that found nothing to strike -> why."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.nothing"))]
    return {note["event"]: note["why"] for note in found}


def _name(event: FaultEvent, rank: int, fatal: bool) -> str:
    who = str(rank) if rank >= 0 else "all"
    pair = f"+{event.peer}" if event.peer >= 0 else ""
    return who if fatal else f"{who}{pair}-{event.kind}-{event.step}"


def _write(path: Path, record: dict[str, Any]) -> None:
    whole = path.with_name(f".{path.stem}.new")  # who looks meanwhile sees nothing
    whole.write_text(json.dumps(record))
    whole.replace(path)


def read_notes(folder: Path) -> list[dict[str, Any]]:
    """All of a run, in the order of their times."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda note: float(note["time"]))
