"""Goodput of long runs on large clusters under published rates of failure, with and without each mechanism: simulated.

Nodes fail independently and come back after a repair; 30 days are played event by event. What is not progress: writing
checkpoints, work done again, restarts or changes of layout, and the capacity of what has failed. Goodput is the share
of a faultless run's steps that were done. Seconds of this project's own mechanisms are those that its other benchmarks
measure on a few ranks, with the switch as `bench transition-plan` predicts it; those of a restart are assumed. All are
flags.

    trainsys bench goodput [--days 30] [--ranks 4096,131072] [--json]
"""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from trainsys.cli.arguments import Parser, screen, whole_numbers

NODE = 8  # ranks
MTBF_HOURS = {  # of a node of 8 devices
    "Llama 3": 2048 * 54 * 24 / 419,  # 419 unexpected interruptions of 16,384 devices in 54 days (2407.21783, §3.3.4)
    "RSC-1": 24 / 6.50e-3,  # 6.50 failures per thousand node-days (Kokolis et al. 2024, 2410.21680)
    "RSC-2": 24 / 2.34e-3,
}
MECHANISMS = {
    "snapshots": "snapshots in peers",
    "in_place": "changes in place",
    "ragged": "ragged layouts",
    "spares": "spares",
    "announced": "notice",
}


@dataclass(frozen=True)
class Job:
    """What a failure meets; seconds.

    Attributes:
        far_s: between checkpoints where peers have snapshots and these are for disasters only.
        snapshots: in peers' memory every step; without, work since the last checkpoint is lost.
        in_place: survivors go on in their processes; without, all restart.
        ragged: only what failed is missing afterwards; without, its whole replica of `replica_nodes` idles.
        spares: nodes that stand by.
        announced: share of failures with notice, whose work is moved out first.
    """

    nodes: int
    step_s: float
    checkpoint_s: float
    restart_s: float
    detect_s: float
    switch_s: float
    repair_hours: float
    replica_nodes: int
    overhead: float
    far_s: float
    snapshots: bool = True
    in_place: bool = True
    ragged: bool = True
    spares: int = 0
    announced: float = 0.0

    def interval_s(self, mtbf_s: float) -> float:
        """Between checkpoints (Young 1974): sqrt(2 · time of one · mean time between failures of the job)."""
        if self.snapshots:
            return self.far_s
        return sqrt(2 * self.checkpoint_s * mtbf_s / self.nodes)

    def pause_s(self, notice: bool) -> float:
        """From a failure until the job is where it was, lost work since a checkpoint apart."""
        if not self.in_place:
            return self.restart_s + self.step_s / 2
        if notice:
            return self.switch_s
        return self.detect_s + self.switch_s + self.step_s / 2

    def capacity(self, lost: int) -> float:
        """Of a cluster without losses, with so many nodes missing."""
        missing = max(0, lost - self.spares)
        if not self.ragged:
            missing = min(self.nodes, missing * self.replica_nodes)
        return max(0.0, 1 - missing / self.nodes)


def simulate(job: Job, mtbf_s: float, days: float, seed: int) -> tuple[float, int]:
    """Goodput, and the number of failures."""
    dice, end, now, done, lost, failures = np.random.default_rng(seed), days * 86400.0, 0.0, 0.0, 0, 0
    repairs: list[float] = []
    interval = job.interval_s(mtbf_s)
    steady = 1 - (job.overhead if job.snapshots else 0.0) - job.checkpoint_s / (interval + job.checkpoint_s)
    fresh_s = 0.0  # since the last checkpoint
    following = float(dice.exponential(mtbf_s / job.nodes))
    while now < end:
        until = min(end, following, repairs[0] if repairs else end)
        done += (until - now) * steady * job.capacity(lost)
        fresh_s = (fresh_s + until - now) % (interval + job.checkpoint_s)
        now = until
        if repairs and now == repairs[0]:
            heapq.heappop(repairs)
            lost -= 1
        elif now == following:
            failures, lost = failures + 1, lost + 1
            heapq.heappush(repairs, now + job.repair_hours * 3600)
            gone = 0.0 if job.snapshots else fresh_s
            pause = job.pause_s(dice.random() < job.announced)
            now += pause
            done -= gone * steady * job.capacity(lost)
            fresh_s = 0.0 if not job.in_place else fresh_s
            while repairs and repairs[0] <= now:
                heapq.heappop(repairs)
                lost -= 1
            following = now + float(dice.exponential(mtbf_s / job.nodes))
    return max(0.0, done) / end, failures


def variants(full: Job) -> dict[str, Job]:
    """One mechanism after the other, then all but one."""
    none = replace(full, snapshots=False, in_place=False, ragged=False, spares=0, announced=0.0)
    found, so_far = {"checkpoints and restarts": none}, none
    without = {}
    for field, title in MECHANISMS.items():
        so_far = replace(so_far, **{field: getattr(full, field)})
        found[f"+ {title}"] = so_far
        without[f"all but {title}"] = replace(full, **{field: getattr(none, field)})
    return found | without


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench goodput", __doc__.splitlines()[0], "  trainsys bench goodput --ranks 131072 --spares 0")
    parser.add_argument("--ranks", default="4096,131072", metavar="A,B")
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=5, help="runs that are averaged")
    parser.add_argument("--step-s", type=float, default=10.0)
    parser.add_argument("--checkpoint-s", type=float, default=10.0, help="that a checkpoint holds up the step")
    parser.add_argument("--restart-s", type=float, default=600.0, help="of all processes, with loading: assumed")
    parser.add_argument("--detect-s", type=float, default=2.2, help="a frozen node; a dead one is noticed in 0.01 s")
    parser.add_argument("--switch-s", type=float, default=0.6, help="groups, planning and moving the state")
    parser.add_argument("--overhead", type=float, default=0.03, help="of snapshots, of the step")
    parser.add_argument("--far-s", type=float, default=3600.0, help="between checkpoints beside snapshots")
    parser.add_argument("--repair-hours", type=float, default=4.0)
    parser.add_argument("--replica-nodes", type=int, default=16, help="of one replica of the model")
    parser.add_argument("--spares", type=float, default=0.005, help="share of the nodes")
    parser.add_argument("--announced", type=float, default=0.2, help="share of failures with notice: assumed")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for name in ("days", "seeds", "step_s", "checkpoint_s", "replica_nodes", "far_s", "repair_hours"):
        if not 0 < getattr(args, name) < 1e6:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name):g} must be more than 0, and below 1e6")
    for name in ("spares", "announced", "overhead"):
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name} {getattr(args, name):g} is a share; set it from 0 to 1")
    for name in ("restart_s", "detect_s", "switch_s"):
        if not 0 <= getattr(args, name) < 1e6:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name):g} must not be negative")
    sizes = whole_numbers("--ranks", args.ranks)
    rows = []
    for ranks in sizes:
        nodes = max(1, ranks // NODE)
        full = Job(
            nodes, args.step_s, args.checkpoint_s, args.restart_s, args.detect_s, args.switch_s, args.repair_hours,
            args.replica_nodes, args.overhead, args.far_s, spares=round(args.spares * nodes), announced=args.announced,
        )  # fmt: skip
        for source, hours in MTBF_HOURS.items():
            for name, job in variants(full).items():
                runs = [simulate(job, hours * 3600, args.days, seed) for seed in range(args.seeds)]
                goodput = sum(run[0] for run in runs) / len(runs)
                failures = sum(run[1] for run in runs) / len(runs)
                rows.append(
                    {"ranks": ranks, "rate": source, "mechanisms": name, "goodput": goodput, "failures": failures}
                )
    if args.json:
        print(json.dumps({"simulated": True, "days": args.days, "rows": rows}))
    else:
        show(rows, args.days)
    return 0


def show(rows: Sequence[dict[str, object]], days: float) -> None:
    """A table for people: mechanisms down, clusters across."""
    from rich.table import Table

    columns = list(dict.fromkeys((row["ranks"], row["rate"]) for row in rows))
    table = Table(title=f"Goodput over {days:g} days, SIMULATED")
    table.add_column("mechanisms", no_wrap=True)
    for ranks, rate in columns:
        table.add_column(f"{ranks:,} ranks\n{rate}", justify="right")
    for name in dict.fromkeys(row["mechanisms"] for row in rows):
        cells = [row for row in rows if row["mechanisms"] == name]
        table.add_row(str(name), *(f"{row['goodput']:.1%}" for row in cells))
    cells = [row for row in rows if row["mechanisms"] == f"+ {MECHANISMS['announced']}"]
    table.add_row("failures", *(f"{row['failures']:,.0f}" for row in cells))
    screen().print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
