"""Clocks after a stage has lost replicas: a step and its energy with all at the nominal clock, and governed: simulated.

A pipeline of `--stages` in `--replicas`; the others of the stage take the lost ones' microbatches. `governed`, as in
training: the stage that has more to do gets a higher clock, and the others a lower one as far as the step stays as
short. `saving`: the others get lower ones as long as the step takes no longer than at nominal clocks. The schedule
(zb2p) is made for the clocks that it runs with.

With --run eight ranks train with emulated stages, one is killed, and the clocks follow, or not: steps are measured.

    trainsys bench clocks [--stages 4] [--replicas 8] [--lost 0,1,2] [--microbatches 168] [--json]
    trainsys bench clocks --run [--step-s 1] [--json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks._clocks_emulated import WAYS, emulated
from trainsys.cli.arguments import Parser, at_least, positive, whole_numbers
from trainsys.planner.clocks import Clock, govern, settled, slowdowns
from trainsys.schedule.costs import Costs
from trainsys.schedule.generators import generate
from trainsys.schedule.problem import Problem
from trainsys.schedule.routes import Routes
from trainsys.schedule.simulate import simulate

F_S = 0.01  # seconds of a forward of one stage at the nominal clock; a backward takes twice as long


def played(replicas: Sequence[int], microbatches: int, clocks: Sequence[float], cap: Clock) -> tuple[float, float]:
    """Seconds and joules of one step.

    Args:
        replicas, clocks: of each stage.
    """
    stages = len(replicas)
    slow = slowdowns(clocks, [cap] * stages)
    f_s = [F_S * factor for factor in slow]
    costs = Costs(f_s, [2 * s for s in f_s], i_s=f_s, w_s=f_s)
    schedule = generate("zb2p", Problem(Routes.balanced(microbatches, replicas), costs=costs))
    run = simulate(schedule, costs)
    clock_of = [1.0] * schedule.num_lanes
    for (stage, _), lane in schedule.placement.items():
        clock_of[lane] = clocks[stage]
    return run.step_s, sum(
        cap.energy_j(busy, clock, run.step_s) for busy, clock in zip(run.busy_s, clock_of, strict=True)
    )


def rows(stages: int, replicas: int, lost: Sequence[int], microbatches: int, cap: Clock) -> list[dict[str, Any]]:
    """One per number of replicas lost, and way to set the clocks."""
    found = []
    for count in lost:
        left = [replicas - count * (stage == stages // 2) for stage in range(stages)]
        work = [1 / n for n in left]
        governed = govern(work, [cap] * stages)
        nominal = [1.0] * stages
        raised = [max(1.0, clock) for clock in governed]

        def step_of(clocks: Sequence[float]) -> float:
            return played(left, microbatches, clocks, cap)[0]

        ways = {
            "nominal": nominal,
            "governed": settled(governed, step_of, step_of(raised)),
            "saving": settled(governed, step_of, step_of(nominal)),
        }
        for way, clocks in ways.items():
            seconds, joules = played(left, microbatches, clocks, cap)
            found.append({"lost": count, "way": way, "step_s": seconds, "energy_j": joules, "clocks": list(clocks)})
    return found


def run(step_s: float, as_json: bool) -> int:
    """The emulated runs."""
    found = [emulated(way, step_s) for way in WAYS]
    ratio = found[1]["after_s"] / found[0]["after_s"]
    if as_json:
        print(json.dumps({"step_s": step_s, "rows": found, "ratio": ratio}))
        return 0
    for row in found:
        print(
            f"clocks {row['way']:8}  step {row['before_s']:6.3f} s, after a loss {row['after_s']:6.3f} s  "
            f"({row['after_s'] / row['before_s']:.2f} x)  {row['layout']}"
        )
    print(f"a step with governed clocks takes {ratio:.2f} of what it takes without")
    return 0


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench clocks", __doc__.splitlines()[0], "  trainsys bench clocks --lost 1,2")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--lost", default="0,1,2", help="replicas of one stage")
    parser.add_argument("--microbatches", type=int, default=168)
    parser.add_argument("--run", action="store_true", help="train with emulated stages instead of simulating")
    parser.add_argument("--step-s", type=float, default=1.0, help="seconds of emulated computing per step (--run)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.run:
        positive("--step-s", args.step_s)
        return run(args.step_s, args.json)
    at_least("--stages", args.stages)
    at_least("--replicas", args.replicas)
    at_least("--microbatches", args.microbatches, args.replicas)
    lost = whole_numbers("--lost", args.lost, 0)
    if max(lost) >= args.replicas:
        raise ValueError(f"--lost {max(lost)} leaves none of --replicas {args.replicas}; set it lower")
    found = rows(args.stages, args.replicas, lost, args.microbatches, Clock())
    if args.json:
        print(json.dumps({"stages": args.stages, "replicas": args.replicas, "rows": found}))
        return 0
    print(f"{args.stages} stages x {args.replicas} replicas; clocks as fractions of the nominal one, by stage")
    for row in found:
        clocks = " ".join(f"{clock:.2f}" for clock in row["clocks"])
        kilojoules = row["energy_j"] / 1e3
        print(f"{row['lost']} lost  {row['way']:8}  step {row['step_s']:6.3f} s  {kilojoules:7.2f} kJ  {clocks}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
