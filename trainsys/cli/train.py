"""`trainsys train`: train a config on a local cluster."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from rich.console import Console

    from trainsys.config import RunConfig
    from trainsys.elastic.manifest import Found

EXAMPLES = """\
  trainsys train configs/run/tiny.yaml
  trainsys train configs/run/tiny.yaml train.steps=200 parallel.dp=1 parallel.tp=2 run_dir=runs/tp2
  trainsys train runs/tp2/config.yaml --json      repeat or resume a run from its own record"""

ABOUT = """\
Train on this machine: one process per rank of cluster.nodes × cluster.ranks_per_node. Ranks that die are replaced by a
new layout of the others; the loss stays the same to the bit. If run_dir has a checkpoint, training resumes from it
(checkpoint.resume=false starts over). Ctrl-C or SIGTERM stops after the current step, with a checkpoint."""


def run(argv: list[str]) -> int:
    """Train. Raises ValueError for bad input and ElasticError when training cannot go on."""
    parser = Parser("train", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the outcome")
    args = parser.parse_intermixed_args(argv)
    from trainsys.cli.prepare import check_data, prepared
    from trainsys.elastic.resume import announce, newest

    config = prepared(args.config)
    found = newest(config)
    console = screen(stderr=args.json)
    check_data(config, console)
    if not announce(config, found, partial(console.print, markup=False)):
        return 0
    if config.faults.schedule or config.faults.kills:
        console.print("faults are not carried out by train; use trainsys drill", markup=False)
    return _train(config, found, console, args.json)


def _train(config: RunConfig, found: Found, console: Console, as_json: bool) -> int:
    from trainsys.elastic.agent import run_local
    from trainsys.elastic.recorder import Recorder

    with Recorder(config, config.run_dir, console, found.step) as recorder:
        run_local(config, recorder, resume=found.path, start_step=found.step)
    stopped = recorder.next_step < config.train.steps
    last = recorder.decisions[-1] if recorder.decisions else None
    kept = next((path for _, path, error in reversed(recorder.saves) if not error), found.path)
    unsaved = bool(recorder.saves) and bool(recorder.saves[-1][2])
    outcome = {
        "steps": recorder.next_step,
        "start_step": found.step,
        "stopped": stopped,
        "loss": last.loss if last else None,
        "loss_hex": last.loss.hex() if last else None,
        "tokens_per_s": _rate(recorder.step_s, config.batch.global_size * config.batch.seq_len),
        "faults": [fault.as_dict() for fault in recorder.faults],
        "checkpoint": kept,
        "run_dir": config.run_dir,
    }
    where = f"checkpoint in {kept}" if kept else "without a checkpoint"
    if stopped:
        console.print(
            f"stopped after step {recorder.next_step} of {config.train.steps}; {where}; "
            f"go on with: trainsys train {shlex.quote(str(Path(config.run_dir) / 'config.yaml'))}",
            markup=False,
        )
    else:
        console.print(f"trained {recorder.next_step} steps; {where}; record in {config.run_dir}", markup=False)
    if as_json:
        print(json.dumps(outcome))
    if unsaved:
        since = f"the last whole one is {kept}" if kept else "there is none before it"
        print(f"trainsys: {recorder.saves[-1][2]}; {since}", file=sys.stderr)
    return 1 if unsaved else 0


def _rate(step_s: list[float], tokens: int) -> float | None:
    """Tokens per second at the median step."""
    return tokens / sorted(step_s)[len(step_s) // 2] if step_s else None
