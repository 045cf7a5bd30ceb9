"""`trainsys check`: hold the history of a run against the invariants."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from trainsys.elastic.check.findings import Findings

SHOWN = 5  # violations of an invariant, unless --all
EXAMPLES = """\
  trainsys check runs/drill                                       a drill: against its own undisturbed run
  trainsys check runs/mine --against runs/reference               a training run, against another of the same config
  trainsys check runs/tp4 --against runs/tp2 --floor 1e-5 --json  where other layouts round otherwise"""

ABOUT = """\
Read what every process of a run wrote into RUN_DIR/history and check it, without running anything: one commit per step,
every sample once, the bits of an undisturbed run, ownership and hashes after each change of layout, epochs, bounds of
time, files and threads, and liveness. The format and the invariants: docs/outputs.md, docs/faults.md. An invariant of
which a history says nothing is "not checked". Exit code 1 if one is violated."""


def run(argv: list[str]) -> int:
    """Check. Raises ValueError where there is no history."""
    parser = Parser("check", ABOUT, EXAMPLES)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="folder of a run or of a drill")
    parser.add_argument("--against", metavar="RUN_DIR", help="the same training without faults, for I3")
    parser.add_argument(
        "--floor", type=float, default=0.0, help="relative difference of losses and norms that passes (0: the bits)"
    )
    parser.add_argument("--all", action="store_true", help=f"show every violation, not the first {SHOWN} of each")
    parser.add_json("verdicts, counts and violations")
    args = parser.parse_args(argv)
    if not 0 <= args.floor < float("inf"):
        raise ValueError(f"--floor {args.floor:g} must be a number from 0 on")
    from pathlib import Path

    from trainsys.elastic.check.registry import as_json, check_run

    undisturbed = Path(args.run_dir) / "undisturbed"
    against = args.against or (undisturbed if undisturbed.is_dir() else None)
    results = check_run(args.run_dir, against, args.floor)
    if args.json:
        print(json.dumps({"run_dir": args.run_dir, "against": str(against) if against else None, **as_json(results)}))
    else:
        _show(results, None if args.all else SHOWN)
    return int(any(found.violations for found in results.values()))


def _show(results: dict[str, Findings], most: int | None) -> None:
    from rich.table import Table

    from trainsys.elastic.check.registry import INVARIANTS

    words = {True: "holds", False: "VIOLATED", None: "not checked"}
    table = Table(box=None, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("invariant")
    table.add_column("looked at")
    for name, found in results.items():
        counts = ", ".join(f"{n} {what}" for what, n in found.checked.items())
        table.add_row(name, words[found.holds], INVARIANTS[name].says, counts)
    console = screen()
    console.print(table)
    for name, found in results.items():
        for violation in found.violations[:most]:
            console.print(f"{name}  {violation.where}: {violation.text}", markup=False)
        rest = len(found.violations[most:]) if most is not None else 0
        if rest:
            console.print(f"{name}  and {rest} more; --all shows them")
