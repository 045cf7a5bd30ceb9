"""`trainsys simulate`: the timeline of one planned step, or of several schedules beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from rich.console import Console

    from trainsys.config import RunConfig
    from trainsys.planner.timeline import Timeline
    from trainsys.schedule import Schedule

EXAMPLES = """\
  trainsys simulate runs/demo/plan.yaml
  trainsys simulate configs/run/tiny.yaml parallel.schedule=gpipe --out runs/gpipe
  trainsys simulate runs/demo/plan.yaml schedule=all              which schedule would suit this layout?
  trainsys simulate runs/demo/plan.yaml schedule=zbv,1f1b --out runs/two
  trainsys simulate runs/demo/plan.yaml --json | jq .bubble"""

ABOUT = """\
Simulate the schedule of a plan (or any config) with the planner's costs of each action: how long forward and backward
of all microbatches take, how much of that each rank idles, how much memory it holds when. Writes trace.json (open it in
ui.perfetto.dev) and timeline.png into --out; with --export-csv DIR also the schedule in both formats of
torch.distributed.pipelining, which parallel.schedule=FILE.csv reads. No GPU, no process group.

schedule=all compares every schedule that can run the plan's stages and microbatches, with one and with two runs of
layers per stage; schedule=A,B those named. Writes a picture of each, schedules.png with all of them on one time axis,
and schedules.html, one page with everything."""

_SCHEDULE = "schedule="


def run(argv: list[str]) -> int:
    """Simulate. Raises ValueError for bad input; nothing is written then."""
    parser = Parser("simulate", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the numbers and every lane's actions")
    parser.add_argument("--out", metavar="DIR", help="folder of the pictures (default: run_dir of the config)")
    parser.add_argument("--export-csv", metavar="DIR", help="folder for the schedule as torch.distributed reads it")
    args = parser.parse_intermixed_args(argv)
    from trainsys.cli.files import write_all
    from trainsys.cli.prepare import check_folder
    from trainsys.config import load
    from trainsys.planner.check import check_batch, check_layout

    asked = [a.removeprefix(_SCHEDULE) for a in args.config if a.startswith(_SCHEDULE)]
    config = load([a for a in args.config if not a.startswith(_SCHEDULE)])
    check_batch(config)
    out = Path(args.out or config.run_dir)
    console = screen(stderr=args.json)
    if asked:
        from trainsys.cli.simulate_all import simulate_all

        if len(asked) > 1:
            raise ValueError("schedule= is given twice; put commas between the names")
        if args.export_csv:
            raise ValueError("--export-csv writes one schedule; name it with parallel.schedule=NAME")
        found = simulate_all(config, asked[0], out, lambda: check_folder(out, "--out" if args.out else "run_dir"))
        if args.json:
            print(json.dumps([as_dict(a.timeline) | a.as_dict() for a in found.able]))
        found.show(console, table=not args.json)
        return 0
    check_layout(config)
    from trainsys.planner.timeline import timeline

    result = timeline(config)
    exports = torch_files(result.schedule, Path(args.export_csv)) if args.export_csv else []
    if args.export_csv:
        check_folder(Path(args.export_csv), "--export-csv")
    check_folder(out, "--out" if args.out else "run_dir")
    write_all(exports)
    _write(config, result, out)
    if args.json:
        print(json.dumps(as_dict(result)))
    else:
        _show(config, result, out, console)
        for _, path, _ in exports:
            console.print(f"{path}  for torch.distributed.pipelining", markup=False)
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
    run = result.run
    return {
        "schedule": result.schedule.name,
        "step_s": run.step_s,
        "ideal_s": result.ideal_s,
        "bubble": run.bubble,
        "busy_s": list(run.busy_s),
        "peak_activations": list(run.peak_activations),
        "peak_gib": list(result.peak_gib),
        "actions": [[str(action) for action in lane] for lane in result.schedule.lanes],
    }


def _write(config: RunConfig, result: Timeline, out: Path) -> None:
    from trainsys.cli.simulate_view import panel, title
    from trainsys.schedule.picture import draw_panels
    from trainsys.schedule.timeline import chrome_trace

    out.mkdir(parents=True, exist_ok=True)
    draw_panels([panel(result, "predicted")], out / "timeline.png", title(config, result))
    (out / "trace.json").write_text(json.dumps(chrome_trace({"predicted": result.run.events})))


def _show(config: RunConfig, result: Timeline, out: Path, console: Console) -> None:
    from trainsys.cli.simulate_view import lanes_table

    run = result.run
    console.print(lanes_table(config, result))
    console.print(
        f"forward and backward {run.step_s:.4g} s, without bubbles {result.ideal_s:.4g} s, bubble {run.bubble:.1%}",
        markup=False,
    )
    console.print(f"{out}/timeline.png  the picture\n{out}/trace.json    the same for ui.perfetto.dev", markup=False)
