"""I5: epochs only grow, what belongs to an old one has no effect, and who was evicted writes nothing more."""

from __future__ import annotations

from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line

SAYS = "epochs only grow; old messages are refused; the evicted write nothing"
DECISIVE = ("epochs",)


def check(case: Case, found: Findings) -> None:
    """The manager's epochs, every rank's, and the files of those that were lost."""
    for attempt in case.record.attempts:
        _manager(attempt, found)
        for rank, lines in attempt.ranks.items():
            _rank(attempt, rank, lines, found)
        for rank, eviction in attempt.lost.items():
            found.count("evictions")
            _silent(attempt, rank, eviction, case.slack_s, found)


def _manager(attempt: Attempt, found: Findings) -> None:
    epoch, gone = -1, set[int]()
    for line in attempt.manager:
        if line.event == "called_off":
            found.count("epochs")
            if line["epoch"] <= epoch:
                found.wrong(line, f"epoch {line['epoch']} is declared after epoch {epoch}")
            epoch = max(epoch, line["epoch"])
        elif line.event in ("opened", "switched", "committed"):
            if line["epoch"] != epoch:
                found.wrong(line, f"{line.event} is said of epoch {line['epoch']} in epoch {epoch}")
        elif line.event == "ignored":
            found.count("old messages ignored")
        elif line.event == "lost":
            gone.add(line["rank"])
        elif line.event == "joined" and line["rank"] in gone:
            found.wrong(line, f"rank {line['rank']} joins again after it was evicted")


def _rank(attempt: Attempt, rank: int, lines: list[Line], found: Findings) -> None:
    """Entered epochs grow, and nothing is done in one that is abandoned or was never entered."""
    epoch, least, refused = -1, -1, 0
    for line in lines:
        if line.event == "entered":
            found.count("epochs entered")
            if line["epoch"] <= epoch or line["epoch"] < least:
                found.wrong(line, f"rank {rank} enters epoch {line['epoch']} after epoch {max(epoch, least)}")
            epoch = line["epoch"]
        elif line.event == "abandoned":
            if line["epoch"] < least:
                found.wrong(line, f"rank {rank} gives up for epoch {line['epoch']} after epoch {least}")
            least = max(least, line["epoch"])
            refused = max(refused, line["refused"])
        elif line.event in ("staged", "switched", "computed", "applied", "hashed"):
            if line["epoch"] != epoch or line["epoch"] < least:
                found.wrong(
                    line, f"rank {rank} has {line.event} in epoch {line['epoch']}, it is in epoch {max(epoch, least)}"
                )
            if line.event == "switched" and line["epoch"] not in attempt.switched:
                found.wrong(line, f"rank {rank} switches to epoch {line['epoch']}, which was never committed")
    found.count("sends refused", refused)


def _silent(attempt: Attempt, rank: int, eviction: Line, slack_s: float, found: Findings) -> None:
    """Nothing of the rank comes after its eviction, by the clock where it is the same, and by epoch."""
    opened = [line["epoch"] for line in attempt.told("opened") if line.number < eviction.number]
    last = max(opened, default=-1)
    for line in attempt.ranks.get(rank, ()):
        late_s = line["t_s"] - eviction["t_s"]
        if attempt.same_clock(rank) and late_s > slack_s:
            found.wrong(line, f"rank {rank} writes {late_s:.3f} s after its eviction ({eviction.where})")
            return
        if line.event != "abandoned" and line.data.get("epoch", -1) > last:
            found.wrong(line, f"rank {rank} is in epoch {line['epoch']}, but was evicted in {last} ({eviction.where})")
            return
