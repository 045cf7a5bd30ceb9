"""`trainsys drill`: train under a fault schedule, and prove that nothing was lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from trainsys.config import RunConfig

EXAMPLES = """\
  trainsys drill configs/run/demo.yaml
  trainsys drill configs/run/tiny.yaml faults.schedule=kill@12:2:backward,join@14 run_dir=runs/one-kill
  trainsys drill configs/run/tiny.yaml faults.schedule=stop@20:1        a hang: the process freezes
  trainsys drill configs/run/tiny.yaml faults.kills=2 faults.seed=7 faults.rejoin_after=5 --json"""

ABOUT = """\
Train twice: once under faults, and once undisturbed; then compare every step bit for bit. faults.schedule has faults by
step and rank, separated by commas:

  kill@STEP:RANK[:PHASE]   it ends (SIGKILL)          cut@STEP:RANK+PEER[:PHASE]     the two lose their connections
  stop@STEP:RANK[:PHASE]   it freezes (SIGSTOP)       oneway@STEP:RANK+PEER[:PHASE]  RANK no longer reaches PEER
  wake@STEP:RANK[:PHASE]   it freezes, and wakes up   slow@STEP:RANK:xN[:STEPS]      it computes N times slower
  drain@STEP:RANK[:PHASE]  it has notice to leave     flip@STEP:RANK[:PHASE]         a bit of its state turns over
  join@STEP                a fresh rank comes         full@STEP                      the next checkpoint finds no room

Phases of a step: forward, send, backward, reduce, snapshot, optimizer. Phases of a change of layout: plan, connect,
transfer, verify, commit. kill and stop may name manager instead of a rank, in collect, tell, open, switch or call.

Instead of a schedule: faults.kills=N random faults fixed by faults.seed, of the kinds in faults.nemeses (kill,cut,… or
all); faults.mtbf_s=S, one every S seconds on average; or faults.trace=FILE, a recorded spot market. --hours H goes
through one storm after the other for so long.
The report lands in run_dir. Exit code 0 only if every fault struck and nothing was lost."""


def run(argv: list[str]) -> int:
    """Drill. Raises ValueError for bad input and ElasticError when training could not go on."""
    parser = Parser("drill", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("report.json")
    parser.add_argument(
        "--hours", type=float, metavar="H", help="soak: random faults with one seed after the other for so long"
    )
    args = parser.parse_intermixed_args(argv)
    from trainsys.cli.prepare import check_data, prepared
    from trainsys.config import load
    from trainsys.elastic.drill_plan import check_source
    from trainsys.elastic.forks import forkserver

    check_source(load(args.config))  # before anybody is told to start a Ray cluster for what it cannot do
    config = prepared(args.config)
    forkserver()  # imports torch on another core while this process does
    from trainsys.elastic.drill import planned_faults, run_drill
    from trainsys.elastic.drill_end import drill_to_the_end, tell_end
    from trainsys.elastic.drill_folder import check_folder
    from trainsys.elastic.drill_result import with_reasons
    from trainsys.elastic.report import files, summary, write_report

    if args.hours is not None and not 0 < args.hours < 1e6:
        raise ValueError(f"--hours={args.hours:g} must be positive and finite")
    planned_faults(config)
    check_folder(Path(config.run_dir))
    console = screen(stderr=args.json)
    check_data(config, console)
    if args.hours is not None:
        return _soak(config, args.hours, console, args.json)
    if config.faults.expect != "survive":
        result = drill_to_the_end(config, console)
        for line in tell_end(result):
            console.print(line, markup=False)
        if args.json:
            print(json.dumps(result))
        return 0 if result["passed"] else 1
    done = run_drill(config, console)
    write_report(done)
    console.print()
    for line in summary(done):
        console.print(line, markup=False)
    console.print(f"\nFiles in {config.run_dir}:", markup=False)
    for name, what in files(config).items():
        console.print(f"  {name:<14}  {what}", markup=False)
    if args.json:
        print(json.dumps(done.result))
    if done.result["unplanned"]:
        print(f"trainsys: lost though nobody killed them: {', '.join(done.result['unplanned'])}", file=sys.stderr)
    if done.result["not_struck"]:
        told = with_reasons(done.result["not_struck"], done.result["nothing_there"])
        print(f"trainsys: never struck: {told}", file=sys.stderr)
    elif not done.passed:
        print("trainsys: the drill failed; see report.md", file=sys.stderr)
    return 0 if done.passed else 1


def _soak(config: RunConfig, hours: float, console: Any, as_json: bool) -> int:
    """Storm after storm. Exit code 0 if all passed, and there was one."""
    from trainsys.elastic.soak import soak
    from trainsys.elastic.soak_page import summary_lines

    result = soak(config, hours, console)
    for line in summary_lines(result, config.run_dir):
        console.print(line, markup=False)
    if as_json:
        print(json.dumps(result))
    return 0 if result["runs"] and not result["failed"] else 1
