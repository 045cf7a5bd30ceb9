"""Who hangs: the wait-for graph of what the ranks' main threads say that they are in.

A rank that waits for nobody and gets nowhere hangs in its own work (computation hang). A message that its sender began
long ago and without which its receiver cannot go on hangs on the way (communication hang). Everybody else only waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainsys.comm.stamps import ALL, Awaited, Doing
from trainsys.elastic.analyst.verdict import COMPUTATION_HANG, LINK_HANG, Finding

IDLE = {"start", "plan", "connect", "transfer", "verify", "commit", "verdict", "save"}  # of others, or of the disk
_WORDS = {"F": "a forward", "B": "a backward", "I": "a backward", "W": "a backward", "R": "a recomputation"}


@dataclass(frozen=True)
class Told:
    """A rank's last word of what it is in.

    Attributes:
        ago_s: since it was heard.
    """

    doing: Doing
    ago_s: float


def find_hang(told: Mapping[int, Told], limit_s: float, fresh_s: float, step: int) -> Finding | None:
    """The one place where everybody's waiting ends, once that lasts `limit_s`; None while it cannot be named.

    Args:
        told: of every rank of the layout.
        fresh_s: words older than that say nothing.
    """
    told = {rank: t for rank, t in told.items() if t.ago_s < fresh_s}
    for rank, t in told.items():
        if t.doing.what != "wait" and t.doing.what not in IDLE and t.doing.for_s >= limit_s:
            what = _WORDS.get(t.doing.what, t.doing.what)
            evidence = f"in {what} for {t.doing.for_s:.2f} s at step {step}{_behind(told, rank)}"
            lasted_s = t.doing.for_s + t.ago_s
            return Finding(COMPUTATION_HANG, (rank,), 0.0, step, evidence, lasted_s=lasted_s)
    for rank, t in told.items():
        if t.doing.what == "wait" and t.doing.for_s >= limit_s:
            for awaited in t.doing.awaited:
                age_s = _on_its_way_s(told, rank, awaited)
                if age_s >= limit_s:
                    evidence = f"sent {age_s:.2f} s ago and not there at step {step}{_behind(told, rank)}"
                    lasted_s = min(age_s, t.doing.for_s + t.ago_s)
                    return Finding(LINK_HANG, (awaited.peer, rank), 0.0, step, evidence, lasted_s=lasted_s)
    return None


def waits_for(told: Mapping[int, Told], rank: int) -> set[int]:
    """The ranks whose turn it is, so that `rank` can go on: those that have not begun what it waits for."""
    t = told.get(rank)
    if t is None or t.doing.what != "wait":
        return set()
    return {a.peer for a in t.doing.awaited if a.peer != rank and not _sent(told, rank, a)}


def _behind(told: Mapping[int, Told], root: int) -> str:
    """How many ranks wait for it in the end, as a clause."""
    waiting = {root}
    while more := {rank for rank in told.keys() - waiting if waits_for(told, rank) & waiting}:
        waiting |= more
    count = len(waiting) - 1
    return f"; {count} other{'s'[: count != 1]} wait{'s'[: count == 1]} for it" if count else ""


def _on_its_way_s(told: Mapping[int, Told], rank: int, awaited: Awaited) -> float:
    """Seconds since both ends of a message had called; negative if they have not."""
    if awaited.kind != "recv" or awaited.peer not in told:
        return -1.0
    sent = told[awaited.peer].doing.sent.get(rank, {}).get(awaited.name)
    if sent is None:
        return -1.0
    return min(awaited.for_s + told[rank].ago_s, sent + told[awaited.peer].ago_s)


def _sent(told: Mapping[int, Told], rank: int, awaited: Awaited) -> bool:
    """Whether the other end has begun its part."""
    if awaited.kind == "send" or awaited.peer not in told:
        return False
    sent = told[awaited.peer].doing.sent
    return awaited.name in sent.get(rank, {}) or awaited.name in sent.get(ALL, {})
