"""Seeded kills over every phase, stage and several layouts: what was lost, and how long until the redone step.

Each case trains the same steps as an undisturbed run of its layout and must end in the same bits. The victims of the
phases of a transition (plan … commit) die while another rank joins. Recovery is counted from the SIGKILL itself to the
commit of the redone step, on one clock; `decided` is the part of it in which the manager takes the next layout.

    trainsys bench faults [--kills 30] [--seed 0] [--stop] [--json]
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser, at_least
from trainsys.config import load
from trainsys.elastic.agent import run_local
from trainsys.elastic.drill import compare
from trainsys.elastic.faults import CHANGE_PHASES, STEP_PHASES, FaultEvent
from trainsys.elastic.recorder import Recorder

RUN = Path(__file__).parents[1] / "configs" / "run" / "tiny.yaml"
LAYOUTS = {  # ranks per node (of 2 nodes), degrees
    "dp2·pp2 zero1": (2, "dp=2 pp=2 zero=1"),
    "dp4 zero0": (2, "dp=4 pp=1 zero=0"),
    "pp4": (2, "dp=1 pp=4 zero=0"),
    "dp2·tp2 zero1": (2, "dp=2 tp=2 pp=1 zero=1"),
    "dp3·pp2 zero1": (3, "dp=3 pp=2 zero=1"),
}
PHASES = STEP_PHASES + CHANGE_PHASES
STEPS = 24


def case_config(layout: str, run_dir: str) -> Any:
    per_node, degrees = LAYOUTS[layout]
    overrides = [f"parallel.{d}" for d in degrees.split()]
    config = load([
        str(RUN), f"cluster.ranks_per_node={per_node}", f"train.steps={STEPS}", f"run_dir={run_dir}",
        "batch.global_size=12", "batch.microbatch_size=1", "checkpoint.every=0", *overrides,
    ])  # fmt: skip
    return dataclasses.replace(config, faults=dataclasses.replace(config.faults, schedule="", kills=0))


def plan(kills: int, seed: int, kind: str = "kill") -> list[tuple[str, list[FaultEvent]]]:
    """Cases of one fault each, walking through layouts and phases so that every phase and every stage is hit."""
    rng = random.Random(f"bench faults/{seed}")
    cases = []
    for i in range(kills):
        layout = list(LAYOUTS)[i % len(LAYOUTS)]
        phases = [p for p in PHASES if p != "send" or "pp=1" not in LAYOUTS[layout][1]]
        phase = phases[(i // len(LAYOUTS) + 3 * (i % len(LAYOUTS))) % len(phases)]
        ranks, step = 2 * LAYOUTS[layout][0], rng.randrange(4, 12)
        events = [FaultEvent(kind, step, (i // len(LAYOUTS) + i) % ranks, phase)]
        if phase in CHANGE_PHASES:
            events += [FaultEvent("join", step)] * (2 if "tp=2" in LAYOUTS[layout][1] else 1)  # a whole team
        cases.append((layout, sorted(events, key=lambda e: e.step)))
    return cases


def run(layout: str, events: Sequence[FaultEvent], folder: str) -> Recorder:
    config = case_config(layout, folder)
    with Recorder(config, folder, None) as recorder:
        run_local(config, recorder, events)
    return recorder


def line(row: dict[str, Any]) -> str:
    """One case on the screen."""
    times = "never struck"
    if row["struck"]:
        times = "seen {detect_s:.3f} s  redone {recover_s:.3f} s  decided in {decide_s:.4f} s".format(**row)
    return f"{row['layout']:14} {row['fault']:24} {times}  " + (
        "step {step_s:.3f} s  steps lost {steps_lost}  samples lost {samples_lost}, repeated {samples_repeated}  "
        "bit-equal {bit_equal_loss}".format(**row)
    )


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench faults", __doc__.splitlines()[0], "  trainsys bench faults --json")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--stop", action="store_true", help="SIGSTOP instead of SIGKILL: a hang, found by its heartbeat"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    at_least("--kills", args.kills)
    rows = []
    references: dict[str, Recorder] = {}
    with tempfile.TemporaryDirectory(prefix="trainsys-faults-") as root:
        for i, (layout, events) in enumerate(plan(args.kills, args.seed, "stop" if args.stop else "kill")):
            if layout not in references:
                references[layout] = run(layout, (), f"{root}/reference-{len(references)}")
            recorder = run(layout, events, f"{root}/case-{i}")
            step_s = statistics.median(references[layout].step_s)
            fault = recorder.faults[0] if recorder.faults else None
            rows.append({
                "layout": layout,
                "fault": next(str(e) for e in events if e.kind != "join"),
                "struck": fault is not None,
                "detect_s": fault.detect_s if fault else None,
                "recover_s": fault.recover_s if fault else None,
                "decide_s": max((c.decide_s for c in recorder.changes if c.before), default=None),
                "step_s": step_s,
                **compare(recorder.config, recorder, references[layout]),
            })  # fmt: skip
            if not args.json:
                print(line(rows[-1]), flush=True)
    struck = [r for r in rows if r["struck"]]
    summary: dict[str, Any] = {
        "faults": len(rows),
        "struck": len(struck),
        "steps_lost": sum(r["steps_lost"] for r in rows),
        "samples_lost": sum(r["samples_lost"] for r in rows),
        "samples_repeated": sum(r["samples_repeated"] for r in rows),
        "bit_equal": sum(r["bit_equal_loss"] for r in rows),
    }
    if struck:
        summary |= {
            "detect_median_s": statistics.median(r["detect_s"] for r in struck),
            "recover_median_s": statistics.median(r["recover_s"] for r in struck),
            "recover_minus_step_median_s": statistics.median(r["recover_s"] - r["step_s"] for r in struck),
            "recover_worst_s": max(r["recover_s"] for r in struck),
            "decide_median_s": statistics.median(r["decide_s"] for r in struck),
            "decide_worst_s": max(r["decide_s"] for r in struck),
        }
    if args.json:
        print(json.dumps({"rows": rows, **summary}))
    else:
        print(" ".join(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in summary.items()))
    return 0 if len(struck) == len(rows) == summary["bit_equal"] and not summary["steps_lost"] else 1


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
