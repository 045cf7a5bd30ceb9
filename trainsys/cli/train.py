"""`trainsys train`: train a config on a local cluster."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from rich.console import Console

    from trainsys.config import RunConfig
    from trainsys.elastic.manifest import Found
    from trainsys.elastic.recorder import Recorder
    from trainsys.schedule.compare import Comparison

EXAMPLES = """\
  trainsys train configs/run/tiny.yaml
  trainsys train configs/run/tiny.yaml train.steps=200 parallel.dp=1 parallel.tp=2 run_dir=runs/tp2
  trainsys train runs/tp2/config.yaml --json      repeat or resume a run from its own record
  trainsys train runs/demo/plan.yaml train.emulate=true train.steps=5 run_dir=runs/emulated"""

ABOUT = """\
Train on this machine: one process per rank of cluster.nodes × cluster.ranks_per_node. Ranks that die are replaced by a
new layout of the others; the loss stays the same to the bit. If run_dir has a checkpoint, training resumes from it
(checkpoint.resume=false starts over). Ctrl-C or SIGTERM stops after the current step, with a checkpoint.

trace.json holds the last step as predicted and as measured, and the last line says how far they are apart.
With train.emulate=true stages sleep for as long as planned instead of computing: a few cores then show how a cluster of
many ranks would overlap. Everything but the numbers is real."""


def run(argv: list[str]) -> int:
    """Train. Raises ValueError for bad input and ElasticError when training cannot go on."""
    parser = Parser("train", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the outcome")
    args = parser.parse_intermixed_args(argv)
    from trainsys.cli.prepare import check_data, prepared
    from trainsys.elastic.forks import forkserver

    config = prepared(args.config)
    forkserver()  # imports torch on another core while this process does
    from trainsys.elastic.claim import claimed
    from trainsys.elastic.resume import announce, newest

    console = screen(stderr=args.json)
    check_data(config, console)
    with claimed(config):
        found = newest(config)
        if announce(config, found, partial(console.print, markup=False)):
            return _train(config, found, console, args.json)
    if args.json:
        print(json.dumps(_outcome(config, found)))
    return 0


def _train(config: RunConfig, found: Found, console: Console, as_json: bool) -> int:
    from trainsys.elastic.launchers import launch
    from trainsys.elastic.measured import tell_comparison, write_timelines
    from trainsys.elastic.recorder import Recorder
    from trainsys.elastic.resume import ending, newest_saved

    with Recorder(config, config.run_dir, console, found.step) as recorder:
        launch(config, recorder, resume=found.path, start_step=found.step)
        comparison = write_timelines(config, recorder, picture=config.train.emulate)
        if comparison is not None:
            recorder.compared(comparison)
    console.print(ending(recorder, found), markup=False)
    if comparison is not None:
        console.print(tell_comparison(comparison), markup=False)
    if as_json:
        print(json.dumps(_outcome(config, found, recorder, comparison)))
    if recorder.saves and recorder.saves[-1][2]:
        kept = newest_saved(recorder, found)
        since = f"the last whole one is {kept}" if kept else "there is none before it"
        print(f"trainsys: {recorder.saves[-1][2]}; {since}", file=sys.stderr)
        return 1
    return 0


def _outcome(
    config: RunConfig, found: Found, recorder: Recorder | None = None, comparison: Comparison | None = None
) -> dict[str, object]:
    """What --json prints; without a recorder nothing was left to train."""
    from trainsys.elastic.resume import newest_saved

    last = recorder.decisions[-1] if recorder and recorder.decisions and not config.train.emulate else None
    steps = recorder.next_step if recorder else found.step
    return {
        "steps": steps,
        "start_step": found.step,
        "stopped": steps < config.train.steps,
        "loss": last.loss if last else None,
        "loss_hex": last.loss.hex() if last else None,
        "tokens_per_s": _rate(recorder.step_s if recorder else [], config.batch.tokens),
        "faults": [fault.as_dict() for fault in recorder.faults] if recorder else [],
        "checkpoint": newest_saved(recorder, found) if recorder else found.path,
        "run_dir": config.run_dir,
        "emulated": config.train.emulate,
        "comparison": asdict(comparison) if comparison else None,
    }


def _rate(step_s: list[float], tokens: int) -> float | None:
    """Tokens per second at the median step."""
    return tokens / sorted(step_s)[len(step_s) // 2] if step_s else None
