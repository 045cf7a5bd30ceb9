"""Searching the whole legal space of large models on large clusters: seconds and memory of `trainsys plan`.

GPT-3 175B on 1,024 A100, and Llama 3 405B on 16,384 H100 and on 131,072. Every degree, schedule, number of runs, ZeRO
stage, recomputation, offload and microbatch size is searched, gradients are added up in place (parallel.reduction=fast)
as most frameworks do. Each case runs in a process of its own, on one core where the system lets it be chosen; `rss_mib`
is the whole peak of that process, interpreter and libraries included, and `total_s` its start and imports too. As many
sequences per step as in the published runs, but on 131,072 ranks four times those on 16,384. `bar_s` is what a case may
take; Calculon, whose space for the first one has 1,136,960 executions, scores 190 a second on a core and had not ended
after 18 minutes.

    trainsys bench search [--cases 175b 405b 405b-large] [--json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True)
class Case:
    """What is planned, and how long that may take."""

    model: str
    cluster: str
    nodes: int
    batch: tuple[int, int]  # sequences, tokens of each
    bar_s: float


CASES = {
    "175b": Case("gpt3-175b", "dgx-a100-2", 128, (1536, 2048), 10),
    "405b": Case("llama-405b", "dgx-h100-4", 2048, (2048, 8192), 30),
    "405b-large": Case("llama-405b", "dgx-h100-4", 16384, (8192, 8192), 60),
}


def measure(name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """One search, in this process."""
    start = time.perf_counter()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    from trainsys.config import load
    from trainsys.planner.search import search

    case = CASES[name]
    config = load(
        [
            str(CONFIGS / "model" / f"{case.model}.yaml"),
            str(CONFIGS / "cluster" / f"{case.cluster}.yaml"),
            f"cluster.nodes={case.nodes}",
            "train.dtype=bfloat16",
            f"batch.global_size={case.batch[0]}",
            "batch.microbatch_size=1",
            f"batch.seq_len={case.batch[1]}",
            "parallel.reduction=fast",
            *overrides,
        ]
    )
    report = search(config, any_microbatch=True)
    best = report.plans[0]
    return {
        "case": name,
        "ranks": report.num_ranks,
        "seconds": report.search_s,
        "total_s": time.perf_counter() - start,
        "bar_s": case.bar_s,
        "legal": report.legal,
        "fitting": report.pruned + report.simulated,
        "simulated": report.simulated,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pareto": len(report.pareto),
        "winner": f"{best.layout} microbatch {best.microbatch_size}",
        "step_s": best.step_s,
        "mfu": best.mfu,
        "peak_gib": best.peak_gib,
    }


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench search", (__doc__ or "").splitlines()[0], "  trainsys bench search --json")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="all by default")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for name in args.cases:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            rows.append(fresh.submit(measure, name, args.set).result())
        if not args.json:
            _show(rows[-1], len(rows) == 1)
    if args.json:
        print(json.dumps({"rows": rows}))
    return 0


def _show(row: dict[str, Any], header: bool) -> None:
    if header:
        print("case         ranks  seconds  bar_s   legal  fitting  simulated  rss_mib  winner")
    print(
        f"{row['case']:10} {row['ranks']:7} {row['seconds']:8.2f} {row['bar_s']:6.0f} {row['legal']:7} "
        f"{row['fitting']:8} {row['simulated']:10} {row['rss_mib']:8.0f}  {row['winner']}, {row['step_s']:.3g} s, "
        f"MFU {row['mfu']:.1%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
