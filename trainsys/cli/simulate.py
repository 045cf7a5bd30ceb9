"""`trainsys simulate`: the timeline of one planned step."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from pathlib import Path

    from trainsys.planner.timeline import Timeline
    from trainsys.schedule import Schedule

EXAMPLES = """\
  trainsys simulate runs/demo/plan.yaml
  trainsys simulate configs/run/tiny.yaml parallel.schedule=gpipe --out runs/gpipe
  trainsys simulate runs/demo/plan.yaml --json | jq .bubble"""

ABOUT = """\
Simulate the schedule of a plan (or any config) with the planner's costs of each action: how long forward and backward
of all microbatches take, how much of that the pipeline idles, how many activations each lane keeps. Writes trace.json
(open it in ui.perfetto.dev) and timeline.png into --out; with --export-csv DIR also the schedule in both formats of
torch.distributed.pipelining, which parallel.schedule=FILE.csv reads. No GPU, no process group."""


def run(argv: list[str]) -> int:
    """Simulate. Raises ValueError for bad input."""
    parser = Parser("simulate", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the numbers and every lane's actions")
    parser.add_argument("--out", metavar="DIR", help="folder of the pictures (default: run_dir of the config)")
    parser.add_argument("--export-csv", metavar="DIR", help="folder for the schedule as torch.distributed reads it")
    args = parser.parse_intermixed_args(argv)
    from pathlib import Path

    from trainsys.cli.files import write_all
    from trainsys.cli.prepare import check_folder
    from trainsys.config import load
    from trainsys.planner.check import check_batch, check_layout
    from trainsys.planner.timeline import timeline
    from trainsys.schedule.timeline import chrome_trace, draw

    config = load(args.config)
    check_batch(config)
    check_layout(config)
    result = timeline(config)
    exports = torch_files(result.schedule, Path(args.export_csv)) if args.export_csv else []
    out = Path(args.out or config.run_dir)
    check_folder(out, "--out" if args.out else "run_dir")
    out.mkdir(parents=True, exist_ok=True)
    write_all(exports)
    groups = {"predicted": result.run.events}
    (out / "trace.json").write_text(json.dumps(chrome_trace(groups)))
    draw(groups, out / "timeline.png", f"{result.schedule.name}: {result.run.bubble:.0%} of the lanes' time is idle")
    if args.json:
        print(json.dumps(as_dict(result)))
    else:
        _show(result, out)
        for _, path, _ in exports:
            screen().print(f"{path}  for torch.distributed.pipelining", markup=False)
    return 0


def torch_files(schedule: Schedule, folder: Path) -> list[tuple[str, Path, bytes]]:
    """Both formats of torch's CSV as ``--export-csv`` writes them. Raises ValueError for what torch cannot run."""
    from trainsys.schedule import export_csv

    return [
        ("--export-csv", folder / f"{name}.csv", export_csv(schedule, comms).encode())
        for name, comms in (("compute_only", False), ("compute_comms", True))
    ]


def as_dict(result: Timeline) -> dict[str, Any]:
    """Numbers for programs; ``actions`` holds each lane's actions in their one notation."""
    return {
        "schedule": result.schedule.name,
        "step_s": result.run.step_s,
        "ideal_s": result.ideal_s,
        "bubble": result.run.bubble,
        "peak_activations": list(result.run.peak_activations),
        "actions": [[str(action) for action in lane] for lane in result.schedule.lanes],
    }


def _show(result: Timeline, out: object) -> None:
    from rich.table import Table

    console = screen()
    run, schedule = result.run, result.schedule
    microbatches = schedule.routes.num_microbatches
    title = f"{schedule.name}, {microbatches} microbatch{'es'[: 2 * (microbatches != 1)]}"
    table = Table(title=title, title_justify="left")
    for heading in ("lane", "stage", "replica", "busy (s)", "idle", "peak activations"):
        table.add_column(heading, justify="right")
    for (stage, replica), lane in sorted(schedule.placement.items(), key=lambda item: item[1]):
        idle = 1 - run.busy_s[lane] / run.step_s
        table.add_row(
            str(lane),
            str(stage),
            str(replica),
            f"{run.busy_s[lane]:.4g}",
            f"{idle:.0%}",
            str(run.peak_activations[lane]),
        )
    console.print(table)
    console.print(
        f"forward and backward {run.step_s:.4g} s, without bubbles {result.ideal_s:.4g} s, bubble {run.bubble:.1%}",
        markup=False,
    )
    console.print(f"{out}/timeline.png  the picture\n{out}/trace.json    the same for ui.perfetto.dev", markup=False)
