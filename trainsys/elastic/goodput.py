"""Where the wall-clock time of a run went, from its histories: nothing here is estimated.

Every moment from the manager's start to its end belongs to one activity, so the shares add up to one. A step that was
thrown away counts as redone up to the fault; that it is done again is useful.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainsys.elastic.check.record import Attempt, read
from trainsys.elastic.faults import MANAGER
from trainsys.elastic.faults.driver import BY_THE_CLOCK
from trainsys.elastic.faults.notes import read_notes

ACTIVITIES = {
    "useful": "steps that count",
    "redone": "steps that were thrown away, and done again",
    "detection": "from a fault to its being noticed",
    "change": "changes of layout",
    "checkpoint": "checkpoints",
    "waiting": "waiting for ranks to start or to come",
}
_UNTIL_LOST, _UNTIL_CALLED_OFF = ("kill", "stop", "wake"), ("cut", "oneway")


@dataclass(frozen=True)
class Segment:
    """From `start` to `end`, seconds of the manager's monotonic clock."""

    start: float
    end: float
    activity: str


def goodput(run_dir: Path | str) -> dict[str, float]:
    """Activity -> share of the time, of all attempts of a run. Raises ValueError without a history."""
    totals = dict.fromkeys(ACTIVITIES, 0.0)
    for attempt in read(run_dir).attempts:
        for segment in segments(attempt, Path(run_dir)):
            totals[segment.activity] += segment.end - segment.start
    whole = sum(totals.values())
    return {name: seconds / whole if whole else 0.0 for name, seconds in totals.items()}


def segments(attempt: Attempt, run_dir: Path) -> list[Segment]:
    """One attempt, end to end."""
    found = list(_by_the_manager(attempt))
    for start, end in (*_detections(attempt, run_dir), *_silences(attempt, run_dir)):
        found = _over(found, Segment(start, end, "detection"), ("redone", "change"))
    for start, end in _saves(attempt, run_dir):
        found = _over(found, Segment(start, end, "checkpoint"), ("useful",))
    for _, line in attempt.of_ranks("waited"):
        found = _over(found, Segment(line["t_s"] - line["seconds"], line["t_s"], "waiting"), ("useful", "redone"))
    return found


def _by_the_manager(attempt: Attempt) -> Iterator[Segment]:
    """What its lines alone say."""
    since, activity = attempt.start["t_s"], "waiting"
    for line in attempt.manager[1:]:
        ends = {"called_off": activity, "switched": "change", "committed": "useful", "ended": "checkpoint"}
        if line.event not in ends:
            continue
        if line.event == "ended" and line["reason"]:
            ends["ended"] = "change"
        yield Segment(since, line["t_s"], ends[line.event])
        since = line["t_s"]
        activity = "change" if line.event == "called_off" else "redone"


def _detections(attempt: Attempt, run_dir: Path) -> Iterator[tuple[float, float]]:
    called_off = [line["t_s"] for line in attempt.told("called_off")]
    for note in read_notes(run_dir / "faults"):
        rank = note.get("rank", -1)
        if rank == MANAGER and note["kind"] in ("kill", "stop"):
            yield from ((note["time"], t) for t in [t for t in called_off if t > note["time"]][:1])
        if note.get("phase") == BY_THE_CLOCK and rank in attempt.lost:
            yield note["time"], attempt.lost[rank]["t_s"]
    for rank, line in attempt.of_ranks("struck"):
        if not attempt.same_clock(rank):
            continue
        if line["kind"] in _UNTIL_LOST and rank in attempt.lost:
            yield line["t_s"], attempt.lost[rank]["t_s"]
        elif line["kind"] in _UNTIL_CALLED_OFF:
            yield from ((line["t_s"], t) for t in [t for t in called_off if t > line["t_s"]][:1])


def _silences(attempt: Attempt, run_dir: Path) -> Iterator[tuple[float, float]]:
    """From the last sign of life of a rank or manager that was lost for its silence, whatever caused that."""
    for line in attempt.told("lost"):
        if line["cause"] == "hang":
            yield line["t_s"] - line["silent_s"], line["t_s"]
    for end, told in _told_at(attempt, run_dir, "manager_lost"):
        yield end - told["detect_s"], end


def _saves(attempt: Attempt, run_dir: Path) -> Iterator[tuple[float, float]]:
    """From the verdict that asked for a checkpoint to its end, written or not.

    One that was written beside the steps took no time from them; after the last one, in a pause, there are none.
    """
    committed = [line["t_s"] for line in (*attempt.told("committed"), *attempt.told("switched"))]
    for end, line in _told_at(attempt, run_dir, "saved"):
        if not line.get("beside"):
            yield from ((start, end) for start in [max((t for t in committed if t <= end), default=end)])


def _told_at(attempt: Attempt, run_dir: Path, event: str) -> Iterator[tuple[float, dict[str, Any]]]:
    """(time of the manager's clock, line) of the agent's lines about `event`."""
    offset = attempt.start["unix_s"] - attempt.start["t_s"]
    path = run_dir / "history.jsonl"
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        if line["event"] == event:
            yield line["unix_s"] - offset, line


def _over(base: list[Segment], top: Segment, only: tuple[str, ...]) -> list[Segment]:
    """`base` with `top` laid over it, where an activity of `only` was."""
    found = []
    for segment in base:
        start, end = max(segment.start, top.start), min(segment.end, top.end)
        if segment.activity not in only or start >= end:
            found.append(segment)
            continue
        pieces = (
            Segment(segment.start, start, segment.activity),
            Segment(start, end, top.activity),
            Segment(end, segment.end, segment.activity),
        )
        found += [piece for piece in pieces if piece.start < piece.end]
    return found
