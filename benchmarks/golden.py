"""Every schedule against what the generators of its authors, or torch's, give on a clock without messages.

golden_schedules.csv has their times: F, I and W of a whole stage take (F I W), runs of layers share them, and a step
counts from 0 to the end of the last stage. Peaks are the most microbatches that a stage keeps, over the cases of one P.

    trainsys bench golden [--json]
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainsys.cli.arguments import Parser
from trainsys.schedule import Costs, Problem, Routes, generate, simulate
from trainsys.space.runs import FOLDED

_CASE = re.compile(r"P(\d+) m(\d+) \((\S+) (\S+) (\S+)\)")


class Row(NamedTuple):
    """One schedule: its published times by case, and peaks by P (0: all m)."""

    schedule: str
    vp: int
    times: dict[str, float]
    peaks: dict[int, float]


def published() -> list[Row]:
    """The table beside this file."""
    with (Path(__file__).parent / "golden_schedules.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        Row(
            row["schedule"],
            int(row["vp"]),
            {case: float(value) for case, value in row.items() if _CASE.fullmatch(case)},
            {P: float(row[f"peak P{P}"].replace("m", "0")) for P in (4, 8)},
        )
        for row in rows
    ]


def measured(row: Row) -> tuple[dict[str, float], dict[int, float]]:
    """Our times and peaks of the same cases; a peak of all m is 0 here too."""
    times, peaks = dict[str, float](), dict.fromkeys(row.peaks, 0.0)
    for case in row.times:
        match = _CASE.fullmatch(case)
        assert match is not None
        stages, m = int(match[1]), int(match[2])
        f_s, i_s, w_s = ([float(x) / row.vp] * stages * row.vp for x in match.groups()[2:])
        folded = row.schedule in FOLDED
        costs = Costs(f_s, [i + w for i, w in zip(i_s, w_s, strict=True)], i_s=i_s, w_s=w_s)
        problem = Problem(Routes.balanced(m, [1] * stages, row.vp, folded), row.vp, folded, costs)
        run = simulate(generate(row.schedule, problem), costs)
        times[case], most = run.step_s, max(run.peak_activations) / row.vp
        peaks[stages] = max(peaks[stages], most if most < m or row.peaks[stages] else 0.0)
    return times, peaks


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench golden", __doc__.splitlines()[0], "  trainsys bench golden --json")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows, equal = list[dict[str, Any]](), True
    for row in published():
        times, peaks = measured(row)
        same = [round(times[case], 1) == row.times[case] for case in row.times]
        same += [peaks[P] == row.peaks[P] for P in row.peaks]
        equal &= all(same)
        cells = {"times": times, "published": row.times, "peaks": peaks, "published_peaks": row.peaks}
        rows.append({"schedule": row.schedule, "vp": row.vp, "equal": all(same), **cells})
    if args.json:
        print(json.dumps({"rows": rows, "equal": equal}))
        return 0 if equal else 1
    cases = list(published()[0].times)
    print(f"{'ours (published)':16}" + "".join(f"{case:>20}" for case in cases) + f"{'peak P4':>12}{'peak P8':>12}")
    for r in rows:
        line = f"{r['schedule']} vp{r['vp']}".ljust(16)
        line += "".join(f"{r['times'][case]:12.1f} ({r['published'][case]:5.1f})" for case in cases)
        kept = {P: (f"{r['peaks'][P]:g}" if r["peaks"][P] else "m") for P in r["peaks"]}
        print(line + "".join(f"{kept[P]:>12}" for P in kept) + ("" if r["equal"] else "  DIFFERS"))
    print("all equal" if equal else "some differ")
    return 0 if equal else 1


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
