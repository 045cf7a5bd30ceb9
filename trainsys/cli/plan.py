"""``trainsys plan``: search the layouts of a model on a cluster; needs no GPU and no process group."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser
from trainsys.cli.files import write_all
from trainsys.cli.plan_elastic import KEPT, Views, elastic, elastic_json
from trainsys.comm.topology import Topology
from trainsys.config import RunConfig, load, named, to_yaml
from trainsys.planner.asked import parse_asked
from trainsys.planner.beside import reduction_fast, what_fits
from trainsys.planner.enumerate import TAKEN
from trainsys.planner.export.registry import EXPORTS, best_export
from trainsys.planner.goodput import DEPTH
from trainsys.planner.nothing import NO_FIT
from trainsys.planner.plan import PlanReport
from trainsys.planner.ranking import with_layout
from trainsys.planner.risk import oom_probability
from trainsys.planner.search import KEEP, search
from trainsys.planner.stages import notation
from trainsys.planner.why import Answer, why_not

_TOP = 5
Export = tuple[str, Path, str, str]  # target, file, text, and the layout where it is another than the best
_WHY = "why="

EXAMPLES = """\
  trainsys plan configs/run/demo.yaml --out runs/demo/plan.yaml
  trainsys plan configs/model/llama-8b.yaml configs/cluster/dgx-h100-4.yaml train.dtype=bfloat16 batch.global_size=128
  trainsys plan configs/run/tiny.yaml parallel.zero=1 parallel.tp=2        the best of those
  trainsys plan configs/run/tiny.yaml why=tp4                              why not that one
  trainsys plan configs/run/tiny.yaml why='dp2·tp1·pp2 zero1 1f1b'         a line of the table
  trainsys plan configs/run/tiny.yaml --explain --picture plan.png
  trainsys plan configs/run/demo.yaml --elastic cluster.node_mtbf_hours=1000
  trainsys plan configs/run/tiny.yaml --export megatron args.sh --export deepspeed ds.json
  trainsys plan configs/run/tiny.yaml cluster.ranks_per_node=3 --json      the best layouts, for a program"""

ABOUT = """\
Search all layouts of a model on a cluster, rank them by predicted step time, say why the others were rejected, and
write the best as a run config. Needs neither the cluster nor a GPU.

Searched are dp, tp, pp, cp, ep, vp, zero, sequence_parallel, schedule, recompute and offload; of the best layouts also
uneven splits of the layers. An override parallel.KEY=value on the command line fixes that key: only layouts with the
value are ranked. What YAML files say of these keys does not, as a plan is itself such a file. parallel.order and
parallel.reduction are taken as they are.

A run's numbers depend on batch.microbatch_size. So it is searched only where neither a file nor an override names it,
or with --any-microbatch.

why=LAYOUT asks why that layout is not the best: which rule it breaks and what to set instead, how much memory it lacks
and what would make it fit, or which parts of the step make it slower. LAYOUT names degrees and words as the table does
(tp8,pp4 or "dp8·tp4·pp2[15,17] zero1 sp mb2"); what it does not name is free, and dp follows from the ranks. Only the
answer is printed, and a plan is written only where --out says so.

--elastic says of the best plans which layouts follow when nodes are lost or one more comes, as the elastic manager will
choose them, and how long training pauses. With cluster.node_mtbf_hours set, the plan written is the one of them that
earns most tokens per second in the long run, which need not be the fastest.

OOM is the probability that a rank runs out of memory, from how far the memory model lies from 131 published peaks.
docs/planning.md reads a plan line by line."""


def run(argv: list[str]) -> int:
    """Plan, print the ranking or an answer, and write the winner as the config that ``trainsys train`` reads.

    Raises:
        ValueError: for bad input, or what a target of ``--export`` cannot express; nothing is written then.
    """
    args = _parser().parse_intermixed_args(argv)
    _check(args)
    questions = [parse_asked(a.removeprefix(_WHY)) for a in args.config if a.startswith(_WHY)]
    inputs = [a for a in args.config if not a.startswith(_WHY)]
    if len(questions) > 1:
        raise ValueError("why= is given twice; ask for one layout at a time")
    config, fixed = load(inputs), _fixed(inputs)
    _check_lost(args.nodes_lost, config.cluster.nodes)
    asked = {key: getattr(config.parallel, key) for key in fixed} | questions[0] if questions else {}
    any_microbatch = args.any_microbatch or "batch.microbatch_size" not in named(inputs)
    keep = max(KEEP, args.top or 0, args.elastic * KEPT)
    try:
        report = search(config, fixed=fixed, keep=keep, any_microbatch=any_microbatch, halves=args.halves)
    except ValueError as error:
        if not asked or args.out or args.export or args.picture or args.explain or args.elastic:
            raise ValueError(f"{error}{_beside(config, fixed, any_microbatch, str(error))}") from None
        return _without_winner(config, asked, args.json, any_microbatch, fixed)
    report = replace(report, any_microbatch=any_microbatch)
    if "parallel.reduction" not in _keys(inputs) and (args.json or not asked):
        report = replace(report, reduction_fast=reduction_fast(config, report, fixed))
    best = report.plans[0]
    answer = why_not(config, asked, best, report.num_ranks, any_microbatch, fixed) if asked else None
    views = elastic(config, report, args.nodes_lost) if args.elastic else []
    best = views[0][0] if views else best
    config = with_layout(config, best.parallel, best.microbatch_size)
    out = args.out or (None if answer else Path("plan.yaml"))
    exports = _exports(config, report, args)
    write_all(_files(config, report, args, out, exports))
    if args.json:
        print(json.dumps(_json(config, report, args, answer, views), indent=2, ensure_ascii=False))
    else:
        _show(config, report, args, answer, views, out, exports)
    return 0


def _beside(config: RunConfig, fixed: Collection[str], any_microbatch: bool, why: str) -> str:
    """What of another microbatch size and the other reduction would fit, unless `why` nothing does says it already."""
    if not why.startswith(NO_FIT):
        return ""
    return what_fits(config, fixed, any_microbatch, try_fast="parallel.reduction=fast" not in why)


def _without_winner(
    config: RunConfig, asked: Mapping[str, Any], as_json: bool, any_microbatch: bool, fixed: Collection[str]
) -> int:
    """Answer a question where no layout fits. Raises ValueError for bad input."""
    answer = why_not(config, asked, None, Topology.from_config(config.cluster).num_ranks, any_microbatch, fixed)
    if as_json:
        print(json.dumps({"plans": [], "why": answer.to_json()}, indent=2, ensure_ascii=False))
    else:
        from trainsys.cli.plan_why import show_answer

        show_answer(answer)
    return 0


def _parser() -> Parser:
    parser = Parser("plan", ABOUT, EXAMPLES)
    parser.add_config()
    parser.add_json("the report")
    parser.add_argument("--out", type=Path, help="where the winner goes (plan.yaml)")
    parser.add_argument("--top", type=int, metavar="K", help=f"layouts to list ({_TOP}; with --json {KEEP})")
    parser.add_argument(
        "--halves", type=int, default=0, metavar="N", help="pareto: also 1/2, 1/4, … of the ranks, N times"
    )
    parser.add_argument("--any-microbatch", action="store_true", help="search batch.microbatch_size whoever names it")
    parser.add_argument(
        "--explain", action="store_true", help="the winner module by module, what its step depends on, wasteful sizes"
    )
    parser.add_argument("--elastic", action="store_true", help="what follows the best plans when nodes fail or come")
    parser.add_argument("--nodes-lost", type=int, metavar="K", help=f"elastic: most nodes lost at once ({DEPTH})")
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="the listed layouts as bars, time and memory")
    parser.add_argument(
        "--export",
        nargs=2,
        action="append",
        default=[],
        metavar=("TARGET", "FILE"),
        help=f"also write the winner for another framework: {', '.join(EXPORTS)}; may be repeated",
    )
    parser.add_argument("--why", help=argparse.SUPPRESS)
    return parser


def _check(args: argparse.Namespace) -> None:
    """What can be refused before the search. Raises ValueError."""
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top {args.top} must be at least 1")
    if args.nodes_lost is not None and (args.nodes_lost < 1 or not args.elastic):
        raise ValueError(f"--nodes-lost {args.nodes_lost} must be at least 1, and needs --elastic")
    if args.halves < 0:
        raise ValueError(f"--halves {args.halves} must not be negative")
    if args.why is not None:
        raise ValueError(f"--why {args.why}: a question is written as the overrides are; use why={args.why}")
    for target, _ in args.export:
        if target not in EXPORTS:
            raise ValueError(f"--export {target} is unknown; use {', '.join(EXPORTS)}")
    if args.picture and args.picture.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--picture {args.picture} must end in .png, .pdf or .svg")
    places = [args.out or Path("plan.yaml"), *(Path(name) for _, name in args.export)]
    places += [args.picture] if args.picture else []
    if len({place.absolute() for place in places}) < len(places):
        raise ValueError("--out, --export and --picture name one file twice; give each its own")


def _check_lost(nodes_lost: int | None, nodes: int) -> None:
    if nodes_lost is not None and nodes_lost > nodes - 1:
        raise ValueError(
            f"--nodes-lost {nodes_lost} leaves none of cluster.nodes={nodes}; "
            + (f"set it to {nodes - 1} or less" if nodes > 1 else "leave it out, or raise cluster.nodes")
        )


def _exports(config: RunConfig, report: PlanReport, args: argparse.Namespace) -> list[Export]:
    """What is written for each target: the plan, or the best one that it can express. Raises ValueError."""
    configs = [config, *(with_layout(config, plan.parallel, plan.microbatch_size) for plan in report.plans)]
    exports: list[Export] = []
    for target, name in args.export:
        text, expressed = best_export(target, configs)
        other = (
            ""
            if expressed == config
            else notation(expressed.parallel, expressed.batch.microbatch_size * report.any_microbatch)
        )
        exports.append((target, Path(name), text, other))
    return exports


def _files(
    config: RunConfig, report: PlanReport, args: argparse.Namespace, out: Path | None, exports: list[Export]
) -> list[tuple[str, Path, bytes]]:
    """All that is to be written, whole, before any of it is: flag, place, content. Raises ValueError."""
    files = [("--out", out, to_yaml(config).encode())] if out else []
    files += [(f"--export {target}", path, text.encode()) for target, path, text, _ in exports]
    if args.picture:
        from trainsys.planner.picture import draw

        title = f"{report.model}\non {report.cluster}"
        form = args.picture.suffix[1:]
        files.append(
            ("--picture", args.picture, draw(report.plans[: args.top or _TOP], title, form, report.any_microbatch))
        )
    return files


def _json(
    config: RunConfig, report: PlanReport, args: argparse.Namespace, answer: Answer | None, views: Views
) -> dict[str, Any]:
    said = report.to_json(args.top)
    for entry in [*said["plans"], *said["pareto"]]:
        entry["oom_probability"] = oom_probability(entry["peak_gib"], entry["limit_gib"])
    if args.explain:
        from trainsys.cli.plan_explain import explain

        said["explain"] = explain(config, _first(report, views)).to_json()
    if config.parallel.cp > 1:
        from trainsys.cli.plan_attention import attention, attention_json

        said["attention"] = attention_json(attention(config))
    if views:
        said["elastic"] = elastic_json(views)
    return said | ({"why": answer.to_json()} if answer else {})


def _show(
    config: RunConfig,
    report: PlanReport,
    args: argparse.Namespace,
    answer: Answer | None,
    views: Views,
    out: Path | None,
    exports: list[Export],
) -> None:
    from trainsys.cli.plan_view import show, show_written

    if answer:
        from trainsys.cli.plan_why import show_answer

        show_answer(answer)
    else:
        show(config, report, args.top or _TOP)
    if args.explain:
        from trainsys.cli.plan_explain import explain, show_explanation

        show_explanation(explain(config, _first(report, views)))
    if config.parallel.cp > 1:
        from trainsys.cli.plan_attention import attention, show_attention

        show_attention(config, attention(config))
    if views:
        from trainsys.cli.plan_elastic import show_elastic

        show_elastic(config, report.plans[0], views, out is not None, sized=report.any_microbatch)
    show_written(out, [(target, path, other) for target, path, _, other in exports], args.picture)


def _first(report: PlanReport, views: Views) -> PlanReport:
    """The report with the plan that is written before the others."""
    if not views or views[0][0] == report.plans[0]:
        return report
    best = views[0][0]
    return replace(report, plans=(best, *(plan for plan in report.plans if plan != best)))


def _fixed(args: list[str]) -> list[str]:
    """The keys that overrides fix, of those that are searched or cannot be."""
    keys = [key.removeprefix("parallel.") for key in _keys(args) if key.startswith("parallel.")]
    return [key for key in keys if key not in TAKEN]


def _keys(args: list[str]) -> list[str]:
    """What overrides name."""
    return list(dict.fromkeys(a.partition("=")[0] for a in args if "=" in a))
