"""Schedules under emulated compute: measured step against the simulator and the closed formula, in one run.

Stages sleep (F takes T, B takes 2T), messages and the executor are real. `off` is measured / predicted - 1.

    trainsys bench schedules [--stages 4] [--microbatches 8] [--t-ms 40] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks._clock import median_s, span
from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.parallel.emulated import EmulatedStage
from trainsys.parallel.executor import Executor
from trainsys.schedule.costs import Costs
from trainsys.schedule.generators import build
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import simulate
from trainsys.testing import RankPool

NAMES = ("gpipe", "1f1b", "interleaved", "bfs")  # an emulated stage has whole backwards only
VP = {"interleaved": 2, "bfs": 2}  # runs of layers per stage, 1 for the others


def scheduled(name: str, microbatches: int, stages: int, t: float) -> tuple[Schedule, Costs]:
    """The schedule, and what its actions take: F `t` seconds per stage, shared among its runs; B twice as long."""
    vp = VP.get(name, 1)
    f_s = [t / vp] * stages * vp
    return build(name, Routes.balanced(microbatches, [1] * stages, vp), vp), Costs(f_s, [2 * f for f in f_s])


def body(rank: int, world_size: int, store: Any, name: str, microbatches: int, t: float, repeat: int) -> dict[str, Any]:
    """One stage: start and end of each repetition on the common clock, and the peak of live activations."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group = comm.group(members)
    schedule, costs = scheduled(name, microbatches, world_size, t)
    last = schedule.routes.num_stages - 1
    runners = {
        s: EmulatedStage(costs.f_s[s], costs.b_s[s], s == 0, s == last) for s in range(rank, last + 1, world_size)
    }
    executor = Executor(schedule, rank, runners, group, dict(enumerate(members)))
    spans = []
    for _ in range(repeat + 1):  # the first connects and warms up
        spans.append(span(group, executor.run))
    comm.close()
    return {"spans": spans[1:], "peak": executor.peak_activations, "actions": len(executor.actions)}


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench schedules", __doc__.splitlines()[0], "  trainsys bench schedules --json")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--t-ms", type=float, default=40.0, help="seconds of F in ms; B takes twice as long")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    stages, m, t = args.stages, args.microbatches, args.t_ms / 1e3
    pool = RankPool()
    rows = []
    for name in NAMES:
        results = pool.run(body, stages, name, m, t, args.repeat, timeout_s=300)
        measured = median_s([r["spans"] for r in results])
        predicted = simulate(*scheduled(name, m, stages, t))
        formula = (m + (stages - 1) / VP.get(name, 1)) * 3 * t  # Narayanan et al. 2021, section 2.2
        rows.append(
            {
                "schedule": name,
                "P": stages,
                "m": m,
                "formula_s": formula,
                "simulated_s": predicted.step_s,
                "measured_s": measured,
                "off_simulated": measured / predicted.step_s - 1,
                "off_formula": measured / formula - 1,
                "peak_activations": [r["peak"] for r in results],
                "simulated_peak": list(predicted.peak_activations),
                "overhead_per_action_ms": 1e3 * (measured - predicted.step_s) / max(r["actions"] for r in results),
            }
        )
    pool.close()
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    print(f"P={stages} m={m} F={args.t_ms:g} ms B={2 * args.t_ms:g} ms, emulated compute, median of {args.repeat}")
    for row in rows:
        print(
            f"{row['schedule']:11} measured {row['measured_s']:.4f} s  simulated {row['simulated_s']:.4f} s "
            f"({row['off_simulated']:+.1%})  formula {row['formula_s']:.4f} s ({row['off_formula']:+.1%})  "
            f"peak {row['peak_activations']} (simulated {row['simulated_peak']})"
        )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
