"""I1: exactly one commit per step, in order, and no rank applies a step that is not committed."""

from __future__ import annotations

from collections.abc import Mapping

from trainsys.elastic.check.findings import Case, Findings
from trainsys.elastic.check.record import Attempt, Line

SAYS = "one commit per step, in order; nothing uncommitted is applied"
DECISIVE = ("commits",)
NUMBERS = ("loss_hex", "grad_norm_hex", "lr_hex", "grad_scale_hex", "skipped")


def check(case: Case, found: Findings) -> None:
    """The manager's commits by themselves, then every rank's verdicts against them."""
    reached: int | None = None
    for attempt in case.record.attempts:
        start = attempt.start["start_step"]
        if reached is not None and start > reached:
            found.wrong(attempt.start, f"the run goes on at step {start}, and only {reached} steps were committed")
        committed = _committed(attempt, found)
        reached = max([start, *(step + 1 for _, step in committed)])
        for rank, lines in attempt.ranks.items():
            _applied(attempt, rank, lines, committed, found)


def _committed(attempt: Attempt, found: Findings) -> dict[tuple[int, int], Line]:
    """(epoch, step) -> its commit, of which there is one, in an epoch that stands."""
    commits: dict[tuple[int, int], Line] = {}
    due, epoch, ranks = attempt.start["start_step"], -1, []
    for line in attempt.manager:
        if line.event == "switched":
            epoch, ranks = line["epoch"], line["ranks"]
            if line["step"] != due:
                found.wrong(line, f"epoch {epoch} begins at step {line['step']}, but {due} steps are committed")
        elif line.event == "called_off":
            epoch = -1
        elif line.event == "committed":
            found.count("commits")
            step = line["step"]
            if step != due:
                found.wrong(line, f"step {step} is committed {'again' if step < due else f'before step {due}'}")
            if line["epoch"] != epoch:
                found.wrong(line, f"step {step} is committed in epoch {line['epoch']}, which does not stand then")
            elif line["ranks"] != sorted(ranks):
                found.wrong(line, f"step {step} is committed by ranks {line['ranks']}, the layout's are {ranks}")
            due = max(due, step + 1)
            commits.setdefault((line["epoch"], step), line)
    return commits


def _applied(
    attempt: Attempt, rank: int, lines: list[Line], committed: Mapping[tuple[int, int], Line], found: Findings
) -> None:
    """What a rank applied, one after the other, is what the manager committed."""
    due, done = -1, set()
    for line in lines:
        if line.event == "switched":
            due = line["step"]
        elif line.event == "applied":
            found.count("verdicts applied")
            step, key = line["step"], (line["epoch"], line["step"])
            done.add(key)
            verdict = committed.get(key)
            if verdict is None:
                found.wrong(line, f"rank {rank} applies step {step} in epoch {key[0]}, where it was never committed")
            else:
                for name in NUMBERS:
                    if line[name] != verdict[name]:
                        found.wrong(line, f"rank {rank} applies step {step} with {name} {line[name]}, "
                                          f"committed is {verdict[name]} ({verdict.where})")  # fmt: skip
                if attempt.same_clock(rank) and line["t_s"] < verdict["t_s"]:
                    found.wrong(line, f"rank {rank} applies step {step} before it is committed ({verdict.where})")
            if step != due:
                found.wrong(line, f"rank {rank} applies step {step}, the next one is {due}")
            due = step + 1
    if rank not in attempt.lost and attempt.ended is not None:
        for key, line in committed.items():
            if rank in line["ranks"] and key not in done:
                found.wrong(line, f"rank {rank} never applied step {key[1]}")
