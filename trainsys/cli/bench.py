"""`trainsys bench`: run one benchmark of the repository."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from trainsys.cli.arguments import Parser

EXAMPLES = """\
  trainsys bench NAME
  trainsys bench NAME --json"""

ABOUT = """\
Run a file of benchmarks/ in a checkout: one comparison against peers and the physical limit, in one run. Further
arguments are handed on; trainsys bench NAME --help shows them."""


def run(argv: list[str]) -> int:
    """Run a benchmark. Raises ValueError for an unknown name or outside of a checkout."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    names = sorted(f.stem.replace("_", "-") for f in folder.glob("*.py") if not f.stem.startswith("_"))
    known = ", ".join(names) if names else f"none, there is no {folder}"
    parser = Parser("bench", f"{ABOUT}\n\nbenchmarks: {known}", EXAMPLES)
    parser.add_argument("name", metavar="NAME")
    args = parser.parse_args(argv[:1])
    if not folder.is_dir():
        raise ValueError(f"benchmarks need a checkout of the repository; there is no {folder}")
    name = args.name.replace("_", "-")
    if name not in names:
        raise ValueError(f"unknown benchmark {args.name!r}; there are {', '.join(names) or 'none'}")
    sys.path.insert(0, str(folder.parent))  # rank processes import the benchmark by its name
    module = importlib.import_module(f"benchmarks.{name.replace('-', '_')}")
    return int(module.main(argv[1:]) or 0)
