"""I7: training goes on while a copy of all state lives; else it ends with a line that names what is lost."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line
from trainsys.space.coverage import LostError, check_covered

SAYS = "training goes on while a copy of all state lives, else it ends and names what is lost"
DECISIVE = ("losses survived", "runs that reached their end", "ends for lost state")


def check(case: Case, found: Findings) -> None:
    """What stood when epochs were opened, what followed each loss, and how each attempt ended."""
    for attempt in case.record.attempts:
        for line in attempt.opened.values():
            if not line["fresh"]:
                missing = _missing(attempt, line["held"] or _source(attempt, line), line["alive"])
                if missing:
                    found.wrong(line, f"epoch {line['epoch']} is opened without {missing}")
        _followed(attempt, found)
        if attempt.ended is not None:
            _end(attempt, attempt.ended, found)


def _source(attempt: Attempt, line: Line) -> list[list[int]]:
    """The layout that counts when an epoch is opened: (its epoch, first portion, end)."""
    before = [epoch for epoch in attempt.switched if epoch < line["epoch"]]
    return [[max(before), 0, 1]] if before else []


def _missing(attempt: Attempt, held: Sequence[Sequence[int]], alive: Collection[int]) -> str:
    """Coordinates that none of `alive` holds; empty: all are held. Portions are not told apart."""
    for epoch, _, _ in held:
        layout = attempt.layout(epoch)
        try:
            check_covered(attempt.space, layout, [rank for rank in layout.ranks if rank in alive])
        except LostError as error:
            return str(error)
    return ""


def _followed(attempt: Attempt, found: Findings) -> None:
    """After the loss of a rank that worked a step is committed, or the run ends, with its reason where it is early."""
    working: list[int] = []
    pending: list[Line] = []
    for line in attempt.manager:
        if line.event == "switched":
            working = line["ranks"]
        elif line.event == "lost" and line["rank"] in working:
            pending.append(line)
        elif line.event == "committed" or (line.event == "ended" and not line["reason"]):
            found.count("losses survived", len(pending))
            pending = []
        elif line.event == "ended":
            pending = []
    if attempt.ended is None and pending and attempt.manager[-1]["t_s"] - pending[0]["t_s"] > _patience(attempt):
        found.wrong(pending[0], f"nothing is committed after the loss of rank {pending[0]['rank']}")


def _patience(attempt: Attempt) -> float:
    """Seconds after which a change without a commit counts as stuck."""
    return float(attempt.start["stall_limit_s"])


def _end(attempt: Attempt, end: Line, found: Findings) -> None:
    """Whether it is the end of training, or a reason says why not."""
    last = attempt.told("committed")[-1:]
    reached = last[0]["step"] + 1 if last else attempt.start["start_step"]
    if end["step"] != reached:
        found.wrong(end, f"the run ends at step {end['step']}, {reached} are committed")
    if not end["reason"]:
        if reached >= attempt.start["steps"]:
            found.count("runs that reached their end")
        return
    if not end["missing"]:
        found.count("runs ended for another reason")
        return
    found.count("ends for lost state")
    if not _missing(attempt, end["held"], end["ranks"]):
        found.wrong(end, f"the run ends for lost state ({end['missing']}), but ranks {end['ranks']} hold all of it")
    names = [tensor.name for tensor in attempt.space.tensors]
    if end["missing"] not in end["reason"] or not any(end["missing"].startswith(name) for name in names):
        found.wrong(end, f"the reason names no coordinates: {end['reason']}")
