"""How long large schedules take to make, to prove and to simulate, on one core.

P = 64 stages and m = 512 microbatches for every schedule: *make* is the generator and the sends and receives, *verify*
the proof. Then 1F1B of 1,024 stages and 256 microbatches: 1.6 million actions. Bars: 1 s for make and verify together,
10 s for the simulation. CPU seconds, so that other processes count little.

    trainsys bench schedule-scale [--only zb1p 1f1b] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from time import process_time
from typing import Any

from trainsys.cli.arguments import Parser
from trainsys.schedule import GENERATORS, Costs, Problem, Routes, simulate, verify
from trainsys.schedule.collector import no_collections
from trainsys.schedule.comms import insert_comms
from trainsys.space.runs import FOLDED


def row(name: str, stages: int, microbatches: int) -> dict[str, Any]:
    """CPU seconds of each part for one schedule."""
    vp = 2 if name in FOLDED or name == "interleaved" else 1
    folded = name in FOLDED
    costs = Costs([1 / vp] * stages * vp, [2 / vp] * stages * vp)
    problem = Problem(Routes.balanced(microbatches, [1] * stages, vp, folded), vp, folded, costs)
    times = [process_time()]
    with no_collections():  # as `schedule.generate` does
        schedule = GENERATORS[name](problem)
        times.append(process_time())
        schedule = insert_comms(schedule)
        times.append(process_time())
        verify(schedule)
    times.append(process_time())
    run = simulate(schedule, costs)
    times.append(process_time())
    generate_s, comms_s, verify_s, simulate_s = (b - a for a, b in pairwise(times))
    return {
        "schedule": name, "P": stages, "m": microbatches, "actions": sum(map(len, schedule.lanes)),
        "generate_s": generate_s, "comms_s": comms_s, "verify_s": verify_s,
        "make_and_verify_s": generate_s + comms_s + verify_s, "simulate_s": simulate_s, "bubble": run.bubble,
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench schedule-scale", __doc__.splitlines()[0], "  trainsys bench schedule-scale --json")
    parser.add_argument("--only", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = [row(name, 64, 512) for name in args.only] + [row("1f1b", 1024, 256)]
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    print("schedule      P    m    actions  generate  comms  verify  together (s)  simulate (s)  bubble")
    for r in rows:
        print(
            f"{r['schedule']:11} {r['P']:4} {r['m']:4} {r['actions']:10,} {r['generate_s']:9.2f} {r['comms_s']:6.2f} "
            f"{r['verify_s']:7.2f} {r['make_and_verify_s']:13.2f} {r['simulate_s']:13.2f} {r['bubble']:7.1%}"
        )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
