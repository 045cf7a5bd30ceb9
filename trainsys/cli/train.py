"""`trainsys train`: train a config on a local cluster."""

from __future__ import annotations

import json

from trainsys.cli.arguments import Parser, screen

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
    from trainsys.config import load
    from trainsys.planner.check import check_parallel

    config = load(args.config)
    check_parallel(config, config.cluster.nodes * config.cluster.ranks_per_node)
    from trainsys.cli.prepare import check_data
    from trainsys.elastic.agent import run_local
    from trainsys.elastic.checkpoint import Found, find_checkpoint
    from trainsys.elastic.recorder import Recorder

    console = screen(stderr=args.json)
    check_data(config, console)
    found = find_checkpoint(config) if config.checkpoint.resume else Found("", 0, ())
    for reason in found.rejected:
        console.print(f"{reason}; using {found.path.rpartition('/')[2] or 'no checkpoint'}", markup=False)
    if found.step >= config.train.steps:
        console.print(
            f"all {config.train.steps} steps are already in {found.path}; raise train.steps to go on", markup=False
        )
        return 0
    if found.path:
        console.print(f"resuming from {found.path} at step {found.step}", markup=False)
    if config.faults.schedule or config.faults.kills:
        console.print("faults are not carried out by train; use trainsys drill", markup=False)
    with Recorder(config, config.run_dir, console, found.step) as recorder:
        run_local(config, recorder, resume=found.path, start_step=found.step)
    stopped = recorder.next_step < config.train.steps
    last = recorder.decisions[-1] if recorder.decisions else None
    kept = next((path for _, path, error in reversed(recorder.saves) if not error), found.path)
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
            f"stopped after step {recorder.next_step} of {config.train.steps}; {where}; run again to go on",
            markup=False,
        )
    else:
        console.print(f"trained {recorder.next_step} steps; {where}; record in {config.run_dir}", markup=False)
    if args.json:
        print(json.dumps(outcome))
    return 0


def _rate(step_s: list[float], tokens: int) -> float | None:
    """Tokens per second at the median step."""
    return tokens / sorted(step_s)[len(step_s) // 2] if step_s else None
