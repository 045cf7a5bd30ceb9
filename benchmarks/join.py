"""A rank joins, or leaves with notice: the longest step then, with the state moved in a pause and beside the steps.

Four ranks train with emulated computing: stages sleep, while state, messages, optimizer, transfer and processes are
real. One is killed early and another one joins later; or one has notice and leaves. A step lasts from one verdict to
the next, a change of layout in between included. Both ways in turn, as often as asked, and the medians.

    trainsys bench join [--mib 50] [--step-s 0.1] [--repeat 3] [--leave] [--json]
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser, at_least, positive
from trainsys.config import RunConfig, load
from trainsys.elastic.agent import run_local
from trainsys.elastic.faults import parse_faults
from trainsys.elastic.messages import Proposal
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision
from trainsys.planner.timeline import timeline
from trainsys.space.layout import Layout

WAYS, RANKS, STATE_BYTES = ("pause", "beside"), 4, 12  # masters and two moments, float32
_WARM, _STEPS, _AT = 4, 34, 12
_HEADS, _LAYER = 1024, 90_144  # the stand-in's heads, and its elements per layer with so many


class Clock(Recorder):
    """When steps and changes count."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        super().__init__(config, run_dir)
        self.at_s: list[float] = []

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int, layout: Layout) -> None:
        super().committed(decision, proposals, epoch, layout)
        self.at_s.append(time.monotonic())


def config_of(way: str, mib: float, step_s: float, folder: Path) -> RunConfig:
    """Of a run whose state is about `mib` MiB in all, with steps of `step_s` before anything else is done in them."""
    layers = max(1, round(mib * 2**20 / STATE_BYTES / _LAYER))
    config = load([
        f"model.num_heads={_HEADS}", f"model.dim={2 * _HEADS}", f"model.num_layers={layers}", "batch.seq_len=32",
        "model.max_seq_len=32", "batch.global_size=12",
        "batch.microbatch_size=3", "cluster.nodes=1", f"cluster.ranks_per_node={RANKS}",
        f"parallel.dp={RANKS}", "parallel.zero=1", "cluster.device.tflops=1", "cluster.device.memory_gib=1000",
        f"train.steps={_STEPS}", "train.emulate=true", "elastic.heartbeat_limit_s=10", f"elastic.move={way}",
        "elastic.history=false", f"run_dir={folder}",
    ])  # fmt: skip
    scale = step_s / timeline(config).run.step_s
    return replace(config, train=replace(config.train, emulate_scale=scale))


def once(way: str, mib: float, step_s: float, leave: bool) -> dict[str, Any]:
    """One run: seconds of its longest step since the change was wanted, of a usual one, and the MiB moved."""
    faults = f"drain@{_AT}:3:forward" if leave else f"kill@1:3:forward,join@{_AT}"
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(way, mib, step_s, Path(folder))
        with Clock(config, Path(folder)) as clock:
            run_local(config, clock, parse_faults(faults, RANKS, _STEPS))
    steps = [b - a for a, b in pairwise(clock.at_s)]
    change = clock.changes[-1]
    if change.step <= _WARM:
        raise ValueError(f"--step-s {step_s:g}: the change did not come within {_STEPS} steps; raise --step-s")
    usual = statistics.median(steps[_WARM : _AT - 1])
    longest = max(steps[_AT - 1 : change.step + 2])
    moved = change.bytes_moved / 2**20
    return {
        "longest_s": longest,
        "usual_s": usual,
        "moved_mib": moved,
        "step": change.step,
        "stage_s": change.transfer_s,
    }


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench join", __doc__.splitlines()[0], "  trainsys bench join --mib 100 --json")
    parser.add_argument("--mib", type=float, default=50.0, help="of state in all, masters and moments")
    parser.add_argument("--step-s", type=float, default=0.1, help="seconds of computing per step")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--leave", action="store_true", help="a rank leaves, instead of one that joins")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    positive("--mib", args.mib)
    positive("--step-s", args.step_s)
    at_least("--repeat", args.repeat)
    rows = []
    for way in WAYS:
        runs = [once(way, args.mib, args.step_s, args.leave) for _ in range(args.repeat)]
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        rows.append({"way": way, **middle, "ratio": statistics.median(r["longest_s"] / r["usual_s"] for r in runs)})
    if args.json:
        print(json.dumps({"mib": args.mib, "step_s": args.step_s, "leave": args.leave, "rows": rows}))
        return 0
    print(f"a state of {args.mib:g} MiB; a rank {'leaves' if args.leave else 'joins'}; median of {args.repeat}")
    for row in rows:
        print(
            f"{row['way']:7} usual step {1e3 * row['usual_s']:6.0f} ms  longest {1e3 * row['longest_s']:6.0f} ms  "
            f"({row['ratio']:.2f} x)  {row['moved_mib']:.0f} MiB moved"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
