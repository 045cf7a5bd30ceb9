"""``trainsys plan``: search the layouts of a model on a cluster; needs no GPU and no process group."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import NoReturn

from trainsys.config import RunConfig, load, save
from trainsys.planner.search import search

_TOP = 5


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def run(argv: list[str]) -> int:
    """Plan, print the ranking, and write the winner as the config that ``trainsys train`` reads.

    Returns:
        exit code: 0, or 2 for bad input, which prints one line on stderr and writes nothing.
    """
    try:
        args = _parser().parse_intermixed_args(argv)
        if args.top is not None and args.top < 1:
            raise ValueError(f"--top {args.top} must be at least 1")
        config = load(args.config)
        report = search(config)
        winner = dataclasses.replace(config, parallel=report.plans[0].parallel)
        _write(winner, args.out)
    except ValueError as error:
        print(f"trainsys plan: {error}", file=sys.stderr)
        return 2
    except SystemExit as done:  # --help
        return int(done.code or 0)
    if args.json:
        print(json.dumps(report.to_json(args.top), indent=2, ensure_ascii=False))
    else:
        from trainsys.cli.plan_view import show

        show(config, report, args.top or _TOP, args.out)
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog="trainsys plan",
        description="Search all layouts of a model on a cluster, rank them, and write the best as a run config.",
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG|key=value", help="YAML files, then overrides")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--out", type=Path, default=Path("plan.yaml"), help="where the winner goes (plan.yaml)")
    parser.add_argument("--top", type=int, metavar="K", help=f"layouts to list ({_TOP}; with --json all)")
    return parser


def _write(config: RunConfig, path: Path) -> None:
    """Write `config` to `path`. Raises ValueError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(config, path)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be written: {error.strerror}") from None
