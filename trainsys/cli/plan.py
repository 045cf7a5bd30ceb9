"""``trainsys plan``: search the layouts of a model on a cluster; needs no GPU and no process group."""

from __future__ import annotations

import json
from pathlib import Path

from trainsys.cli.arguments import Parser
from trainsys.config import RunConfig, load, named, save
from trainsys.planner.enumerate import TAKEN
from trainsys.planner.ranking import with_layout
from trainsys.planner.search import KEEP, search

_TOP = 5

EXAMPLES = """\
  trainsys plan configs/run/demo.yaml --out runs/demo/plan.yaml
  trainsys plan configs/model/llama-8b.yaml configs/cluster/dgx-h100-4.yaml train.dtype=bfloat16 batch.global_size=128
  trainsys plan configs/run/tiny.yaml parallel.zero=1 parallel.tp=2        the best of those
  trainsys plan configs/run/tiny.yaml cluster.ranks_per_node=3 --json      the best layouts, for a program"""

ABOUT = """\
Search all layouts of a model on a cluster, rank them by predicted step time, say why the others were rejected, and
write the best as a run config. Needs neither the cluster nor a GPU.

Searched are dp, tp, pp, cp, ep, vp, zero, sequence_parallel, schedule, recompute and offload; of the best layouts also
uneven splits of the layers. An override parallel.KEY=value on the command line fixes that key: only layouts with the
value are ranked. What YAML files say of these keys does not, as a plan is itself such a file. parallel.order and
parallel.reduction are taken as they are.

A run's numbers depend on batch.microbatch_size. So it is searched only where neither a file nor an override names it,
or with --any-microbatch."""


def run(argv: list[str]) -> int:
    """Plan, print the ranking, and write the winner as the config that ``trainsys train`` reads.

    Raises:
        ValueError: for bad input; nothing is written then.
    """
    parser = Parser("plan", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the report")
    parser.add_argument("--out", type=Path, default=Path("plan.yaml"), help="where the winner goes (plan.yaml)")
    parser.add_argument("--top", type=int, metavar="K", help=f"layouts to list ({_TOP}; with --json {KEEP})")
    parser.add_argument(
        "--halves", type=int, default=0, metavar="N", help="pareto: also 1/2, 1/4, … of the ranks, N times"
    )
    parser.add_argument("--any-microbatch", action="store_true", help="search batch.microbatch_size whoever names it")
    args = parser.parse_intermixed_args(argv)
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top {args.top} must be at least 1")
    if args.halves < 0:
        raise ValueError(f"--halves {args.halves} must not be negative")
    config = load(args.config)
    any_microbatch = args.any_microbatch or "batch.microbatch_size" not in named(args.config)
    keep = max(KEEP, args.top or 0)
    report = search(config, fixed=_fixed(args.config), keep=keep, any_microbatch=any_microbatch, halves=args.halves)
    best = report.plans[0]
    config = with_layout(config, best.parallel, best.microbatch_size)
    _write(config, args.out)
    if args.json:
        print(json.dumps(report.to_json(args.top), indent=2, ensure_ascii=False))
    else:
        from trainsys.cli.plan_view import show

        show(config, report, args.top or _TOP, args.out)
    return 0


def _fixed(args: list[str]) -> list[str]:
    """The keys that overrides fix, of those that are searched or cannot be."""
    keys = [a.partition("=")[0].removeprefix("parallel.") for a in args if a.startswith("parallel.") and "=" in a]
    return [key for key in dict.fromkeys(keys) if key not in TAKEN]


def _write(config: RunConfig, path: Path) -> None:
    """Write `config` to `path`. Raises ValueError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(config, path)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be written: {error.strerror}") from None
