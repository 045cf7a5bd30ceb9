"""`trainsys reshard`: convert a checkpoint between layouts and frameworks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from trainsys.elastic.conversion import Conversion

EXAMPLES = """\
  trainsys reshard runs/mine/checkpoints/step-00000200 hf:exported --dtype bfloat16
  trainsys reshard runs/mine/checkpoints/step-00000200 universal:for-deepspeed
  trainsys reshard runs/mine/checkpoints/step-00000200 runs/next/checkpoints/step-00000200 parallel.tp=2 parallel.dp=2
  trainsys reshard deepspeed:out/global_step50 runs/next/checkpoints/step-00000050 configs/run/tiny.yaml
  trainsys train configs/run/tiny.yaml train.init_from=hf:exported run_dir=runs/next"""

ABOUT = """\
Convert the checkpoint SRC to DST, each written KIND:PATH: dcp (ours; a plain step-… folder is one), hf, deepspeed,
universal, megatron. Pieces of a few MiB are in memory at a time. The work is done in DST.partial; the same command goes
on after an interruption, and DST appears when it is whole, with checksums. A checkpoint of ours or of Hugging Face
names its architecture; for others give it: a YAML file or model.KEY=value. parallel.KEY=value says how a checkpoint of
ours is cut. Training loads any checkpoint of ours on any layout by itself. What is read, written and checked:
docs/checkpoints.md."""


def run(argv: list[str]) -> int:
    """Convert. Raises ValueError for bad input."""
    args = _parsed(argv)
    from trainsys.elastic.conversion import Conversion

    _check_options(args)
    conversion = Conversion(
        args.source, args.target, args.config, args.dtype, args.names or "hf", (args.shard_mib or 1024) << 20,
        args.step, args.weights_only, args.zero_moments,
    )  # fmt: skip
    return _run(conversion, args)


def _parsed(argv: list[str]) -> argparse.Namespace:
    parser = Parser("reshard", ABOUT, EXAMPLES)
    parser.add_argument("source", metavar="SRC", help="KIND:PATH, or a step-… folder")
    parser.add_argument("target", metavar="DST", help="KIND:PATH, or a step-… folder; must not exist yet")
    parser.add_argument(
        "config", nargs="*", metavar="CONFIG|key=value", help="architecture, layout, settings of the run"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of hf weights")
    parser.add_argument("--shard-mib", type=int, help="hf: a new file begins above this (1024)")
    parser.add_argument("--names", choices=("hf", "ours"), help="universal: of the module to load it (hf)")
    parser.add_argument("--step", type=int, default=-1, help="optimizer steps in SRC, where it does not say")
    parser.add_argument("--weights-only", action="store_true", help="megatron: without the optimizer's state")
    parser.add_argument("--zero-moments", action="store_true", help="Adam moments of zero, where SRC has none or not")
    parser.add_json("the outcome")
    args = parser.parse_intermixed_args(argv)
    if args.shard_mib is not None and args.shard_mib < 1:
        raise ValueError(f"--shard-mib {args.shard_mib} must be at least 1")
    return args


def _check_options(args: argparse.Namespace) -> None:
    """Whether each option has an effect on the kind that is written. Raises ValueError."""
    from trainsys.elastic.kinds import parse_address

    kind, _ = parse_address(args.target, "DST")
    for option, value, owner in (("--names", args.names, "universal"), ("--shard-mib", args.shard_mib, "hf")):
        if value is not None and kind != owner:
            raise ValueError(f"{option} {value} is for {owner}: alone and changes nothing in {kind}:; leave it out")


def _run(conversion: Conversion, args: argparse.Namespace) -> int:
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = screen(stderr=args.json)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=conversion.nbytes)
        done = conversion.run(lambda n, file: progress.update(task, advance=n, description=Path(file).name))
    if args.json:
        facts = {"source": args.source, "target": args.target, "step": conversion.step, "bytes": done.nbytes}
        print(json.dumps({**facts, "files": done.files, "resumed": done.resumed, "largest_read": done.largest_read}))
    else:
        again = f", {done.resumed} of them from an earlier attempt" if done.resumed else ""
        step = "" if conversion.step is None else f"step {conversion.step} of "
        size = f"{done.nbytes / 2**20:.1f} MiB in {done.files} file{'s'[: done.files != 1]}{again}"
        console.print(f"{step}{args.source} is in {args.target}: {size}", markup=False)
    return 0
