"""`trainsys reshard`: turn a checkpoint into another framework's."""

from __future__ import annotations

import json
from pathlib import Path

from trainsys.cli.arguments import Parser, screen

EXAMPLES = """\
  trainsys reshard runs/mine/checkpoints/step-00000200 hf:exported
  trainsys reshard runs/mine/checkpoints/step-00000200 hf:exported --dtype bfloat16
  trainsys train configs/run/tiny.yaml train.init_from=hf:exported run_dir=runs/next"""

ABOUT = """\
Write the weights of a checkpoint, of whatever layout, as a Hugging Face folder (safetensors with an index, and
config.json) that transformers reads. One shard is in memory at a time; the folder appears when it is complete.
Between layouts of our own nothing needs converting: `trainsys train` loads any checkpoint on any layout. The way back
is train.init_from=hf:FOLDER."""


def run(argv: list[str]) -> int:
    """Convert. Raises ValueError for bad input."""
    parser = Parser("reshard", ABOUT, EXAMPLES)
    parser.add_argument("source", metavar="SRC", help="a checkpoint folder, step-…")
    parser.add_argument("target", metavar="DST", help="hf:FOLDER, which must not exist yet")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    parser.add_argument("--shard-mib", type=int, default=1024, help="a new file begins above this (1024)")
    parser.add_json("the outcome")
    args = parser.parse_args(argv)
    source, (kind, _, folder) = Path(args.source), args.target.partition(":")
    if kind != "hf" or not folder:
        raise ValueError(f"DST {args.target} is not of the form hf:FOLDER")
    if args.shard_mib < 1:
        raise ValueError(f"--shard-mib {args.shard_mib} must be at least 1")
    from trainsys.elastic.manifest import read_manifest

    manifest = read_manifest(source)
    import torch

    from trainsys.config import ModelConfig
    from trainsys.elastic.checkpoint import SavedTensors
    from trainsys.interop.hf import write_hf
    from trainsys.models.geometry import num_params
    from trainsys.space.box import Box

    saved, config = SavedTensors(source), ModelConfig(**manifest["model"])

    def read(name: str, box: Box) -> torch.Tensor:
        values = torch.empty(box.shape, dtype=saved.dtype(f"master.{name}"))
        saved.read([(f"master.{name}", box, values)])
        return values

    dtype = getattr(torch, args.dtype)
    console, total, done = screen(stderr=args.json), num_params(config) * dtype.itemsize, 0
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing", total=total)
        for name, size in write_hf(Path(folder), config, read, dtype, args.shard_mib << 20):
            done += size
            progress.update(task, advance=size, description=name)
    if args.json:
        print(json.dumps({"source": str(source), "target": folder, "step": manifest["step"], "bytes": done}))
    else:
        console.print(f"step {manifest['step']} of {source} is in {folder}: {done / 2**20:.1f} MiB, {args.dtype}")
    return 0
