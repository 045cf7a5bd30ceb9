"""Schedules under emulated compute on our engine and on torch's: the measured step against the simulated one.

F, I and W of a rank take T per microbatch each, B as long as I and W; under vp its stages share them. Both engines run
the same module with a real backward and real messages over gloo; what is left of an action's time, the stage waits. So
the first stage's input gradient, which torch does not compute, takes its time in both. Rows are all schedules of the
registry, and torch's own (``torch NAME``), read from its CSV; torch runs each from CSV with comms.

`off` is measured / simulated - 1. *In a row* is the time per step of some steps with no barrier between them. The
overhead per action is that of a step whose actions take no longer than their work, less that work alone (in all ranks
at once), divided by the actions of its longest lane, compute and messages. All ranks share the machine's cores, so it
is an upper bound.

    trainsys bench schedules [--stages 4] [--microbatches 8] [--t-ms 40] [--repeat 3] [--in-a-row 4]
                             [--only 1f1b "torch ZBV"] [--json]
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from benchmarks._schedules_run import Case, body, cases, costs, medians, repeated
from trainsys.cli.arguments import Parser
from trainsys.schedule.simulate import simulate
from trainsys.testing import RankPool


def row(pool: RankPool, case: Case, t: float, repeat: int, steps: int, peer: bool = True) -> dict[str, Any]:
    """What one schedule takes, simulated and measured, in seconds but for the overheads."""
    seconds = costs(case, t)
    simulated, in_a_row = (simulate(s, seconds) for s in (case.schedule, repeated(case.schedule, steps)))
    took = medians(pool.run(body, case.ranks, case, t, repeat, steps, peer, timeout_s=600))
    actions = max(map(len, case.schedule.lanes))
    found = {
        "schedule": case.name,
        "P": case.ranks,
        "m": case.microbatches,
        "vp": case.vp,
        "actions": actions,
        "simulated_s": simulated.step_s,
        "measured_s": took["ours"],
        "off_simulated": took["ours"] / simulated.step_s - 1,
        "in_a_row_simulated_s": in_a_row.step_s / steps,
        "in_a_row_s": took["ours row"] / steps,
        "work_per_action_ms": 1e3 * took["work"] / actions,
        "overhead_per_action_ms": 1e3 * (took["ours empty"] - took["work"]) / actions,
    }
    if peer:
        found |= {
            "torch_measured_s": took["torch"],
            "torch_off_simulated": took["torch"] / simulated.step_s - 1,
            "torch_in_a_row_s": took["torch row"] / steps,
            "torch_overhead_per_action_ms": 1e3 * (took["torch empty"] - took["work"]) / actions,
            "overhead_ratio": (took["ours empty"] - took["work"]) / (took["torch empty"] - took["work"]),
        }
    return found


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench schedules", __doc__.splitlines()[0], "  trainsys bench schedules --json")
    parser.add_argument("--stages", type=int, default=4, help="P, ranks of the pipeline")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--t-ms", type=float, default=40.0, help="ms of F, of I and of W, per rank and microbatch")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--in-a-row", type=int, default=4, metavar="STEPS", help="with no barrier between them")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of the rows")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    pool, rows = RankPool(), []
    if not args.json:
        print(f"P={args.stages} m={args.microbatches} F=I=W={args.t_ms:g} ms; median of {args.repeat}\n{_HEAD}")
    for case in cases(args.stages, args.microbatches, tuple(args.only)):
        rows.append(row(pool, case, args.t_ms / 1e3, args.repeat, args.in_a_row) | {"load": os.getloadavg()[0]})
        if not args.json:
            print(_line(rows[-1]), flush=True)
    pool.close()
    if args.json:
        print(json.dumps({"rows": rows}))
    return 0


_HEAD = (
    f"{'':27}{'one step (s)':^38}   {'in a row, per step (s)':^26}   {'overhead/action (ms)':^22}\n"
    f"{'schedule':27}{'simulated':>9} {'ours':>7} {'off':>6} {'torch':>7} {'off':>6}   "
    f"{'simulated':>9} {'ours':>8} {'torch':>8}  {'ours':>6} {'torch':>6} {'ratio':>6} {'load':>5}"
)


def _line(r: dict[str, Any]) -> str:
    return (
        f"{r['schedule']:27}{r['simulated_s']:9.3f} {r['measured_s']:7.3f} {r['off_simulated']:+6.1%} "
        f"{r['torch_measured_s']:7.3f} {r['torch_off_simulated']:+6.1%}   {r['in_a_row_simulated_s']:9.3f} "
        f"{r['in_a_row_s']:8.3f} {r['torch_in_a_row_s']:8.3f}  {r['overhead_per_action_ms']:6.3f} "
        f"{r['torch_overhead_per_action_ms']:6.3f} {r['overhead_ratio']:6.2f} {r['load']:5.1f}"
    )


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
