"""I0: the history can be relied on: no line is torn but a killed process's last, every file has its manager's."""

from __future__ import annotations

from itertools import pairwise

from trainsys.elastic.check.findings import Case, Findings

SAYS = "the history is whole"
DECISIVE = ("lines",)


def check(case: Case, found: Findings) -> None:
    """Defects are found when the files are read; here they are told."""
    record = case.record
    found.count("lines", record.num_lines)
    found.count("last lines cut off", len(record.torn))
    for where, what in record.defects:
        found.wrong(where, what)
    for attempt in record.attempts:
        for lines in (attempt.manager, *attempt.ranks.values()):
            for before, after in pairwise(lines):
                if after["t_s"] < before["t_s"]:
                    found.wrong(after, f"the clock goes back by {before['t_s'] - after['t_s']:.6f} s")
        for rank in sorted({r for line in attempt.switched.values() for r in line["ranks"]} - attempt.ranks.keys()):
            found.wrong(attempt.start, f"rank {rank} was in a layout and left no file")
