"""Planning a change of layout: what one rank pays, in time and memory, on a cluster too large to have at hand.

Llama 3 70B, and Qwen3 235B-A22B with its experts in 8 classes: a node of 8 ranks is lost, tp8·pp8 becomes tp4·pp16, and
the classes become 16. Each case runs in a process of its own; each plan begins with nothing cached and includes the
arrangement in rounds. `rss_mib` is the whole peak of that
process, interpreter and libraries included. `predicted_s` is the plan's time plus the time that the bytes of its rounds
(fp32 master and two moments) take on the declared links, on the slowest of the ranks sampled. Not in it: building
process groups, and the gather of weights under ZeRO-1, which every step has.

    trainsys bench transition-plan [--ranks 4096 131072] [--sample 24] [--models 70b 235b] [--json]
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import multiprocessing
import resource
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from trainsys import config
from trainsys.cli.arguments import Parser
from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.planner.switch import rounds_s, sampled
from trainsys.space.build import build_layout, succeed
from trainsys.space.coverage import check_covered
from trainsys.space.layout import Layout
from trainsys.space.rounds import PART_BYTES, rounds
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import transition

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ELEMENT_BYTES = 4 * len(SLOTS)
NODE_LOST, NARROWER, MORE_CLASSES = "node lost", "tp8·pp8 → tp4·pp16", "ep8 → ep16"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model to plan for, and what a peer publishes of its switch.

    Attributes:
        switch_s: DynaTrain (arXiv:2605.18815, abstract), on its own machines and ranks.
    """

    config: str
    ep: int
    cases: tuple[str, ...]
    switch_s: float


MODELS = {
    "70b": Model("llama-70b.yaml", 1, (NODE_LOST, NARROWER), 2.0),
    "235b": Model("qwen3-235b-a22b.yaml", 8, (NODE_LOST, NARROWER, MORE_CLASSES), 4.36),
}


def layouts(
    case: str, parallel: ParallelConfig, num_layers: int, ranks: int, chunk: int, topology: Topology
) -> tuple[Layout, Layout, tuple[int, ...]]:
    """The layouts before and after, and who is alive in between."""
    every = tuple(range(ranks))
    src = build_layout(parallel, split_layers(num_layers, parallel.pp), every, chunk, topology.node_of)
    if case != NODE_LOST:
        wide = dataclasses.replace(parallel, tp=parallel.tp // 2, pp=parallel.pp * 2)
        if case == MORE_CLASSES:
            wide = dataclasses.replace(parallel, ep=parallel.ep * 2)
        return src, build_layout(wide, split_layers(num_layers, wide.pp), every, chunk, topology.node_of), every
    gone = topology.nodes // 2
    alive = tuple(r for r in every if topology.node_of(r) != gone)
    living = set(alive)
    intact = [sum(living.issuperset(team) for team in stage.teams) for stage in src.stages]
    ragged = dataclasses.replace(parallel, stage_replicas=tuple(intact))
    return src, succeed(src, ragged, split_layers(num_layers, parallel.pp), alive, topology.node_of), alive


def measure(name: str, case: str, zero: int, ranks: int, sample: int, chunk: int) -> dict[str, Any]:
    """One row; to be called in a fresh process."""
    model = MODELS[name]
    settings = config.load([str(CONFIGS / "cluster" / "dgx-h100-4.yaml"), str(CONFIGS / "model" / model.config)])
    sizes = resolve(settings.model)
    cluster = settings.cluster
    cluster = dataclasses.replace(cluster, nodes=ranks // cluster.ranks_per_node)
    topology = Topology.from_config(cluster)
    parallel = ParallelConfig(dp=ranks // 64, tp=8, pp=8, ep=min(model.ep, ranks // 64), zero=zero)
    space = Space(tuple(tensors(sizes)))
    started = time.perf_counter()
    src, dst, alive = layouts(case, parallel, sizes.num_layers, ranks, chunk, topology)
    build_s = time.perf_counter() - started
    covered = []
    for _ in range(5):
        before = dataclasses.replace(src)
        started = time.perf_counter()
        check_covered(space, before, alive)
        covered.append(time.perf_counter() - started)
    participants = tuple(sorted({*alive, *dst.ranks}))
    plans, switches, received = [], [], []
    for rank in sampled(src, alive, participants, sample):
        before, after = dataclasses.replace(src), dataclasses.replace(dst)  # as they come by message: nothing cached
        gc.collect()
        started = time.perf_counter()
        share = transition(space, before, after, rank, alive, topology.node_of)
        order = rounds(share, participants, PART_BYTES // ELEMENT_BYTES)
        plans.append(time.perf_counter() - started)
        switches.append(plans[-1] + rounds_s(rank, order, topology.transfer_s, ELEMENT_BYTES))
        received.append(sum(m.box.numel for m in share.receives))
    return {
        "model": name,
        "case": case,
        "zero": zero,
        "ranks": ranks,
        "layouts": f"{src} → {dst}",
        "sampled": len(plans),
        "p50_ms": 1e3 * _quantile(plans, 0.5),
        "p95_ms": 1e3 * _quantile(plans, 0.95),
        "max_ms": 1e3 * max(plans),
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "max_received_gib": max(received) * ELEMENT_BYTES / 2**30,
        "predicted_s": max(switches),
        "dynatrain_s": model.switch_s,
        "build_layouts_s": build_s,
        "check_covered_ms": 1e3 * _quantile(covered, 0.5),
    }


def _quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench transition-plan", __doc__.splitlines()[0], "  trainsys bench transition-plan --json")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4096, 131072], help="multiples of 64, at least 128")
    parser.add_argument("--sample", type=int, default=24, help="ranks planned for per case")
    parser.add_argument("--chunk", type=int, default=2**20, help="elements per piece")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS, help="70b: Llama 3, 235b: Qwen3")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    for ranks in args.ranks:
        if ranks < 128 or ranks % 64:
            raise ValueError(f"--ranks {ranks} must be a multiple of tp·pp = 64, and at least 128 to spare a node")
    if args.chunk < 1:
        raise ValueError(f"--chunk {args.chunk} must be at least 1")
    if args.sample < 1:
        raise ValueError(f"--sample {args.sample} must be at least 1")
    rows = []
    for ranks in args.ranks:
        for name in args.models:
            for case in MODELS[name].cases:
                for zero in (1, 0):
                    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                        row = fresh.submit(measure, name, case, zero, ranks, args.sample, args.chunk).result()
                    rows.append(row)
                    if not args.json:
                        _show(row, len(rows) == 1)
    if args.json:
        print(json.dumps({"rows": rows}))
    else:
        print("dynatrain_s: the switch that arXiv:2605.18815 reports, on machines of its own: only the sizes compare")
    return 0


def _show(row: dict[str, Any], header: bool) -> None:
    if header:
        print(f"{'model':5} {'case':20} zero   ranks   p50_ms   p95_ms  rss_mib  predicted_s  dynatrain_s   "
              "(building the layouts, loss check)")  # fmt: skip
    print(
        f"{row['model']:5} {row['case']:20} {row['zero']:4} {row['ranks']:7} {row['p50_ms']:8.1f} {row['p95_ms']:8.1f} "
        f"{row['rss_mib']:8.0f} {row['predicted_s']:12.3f} {row['dynatrain_s']:12.2f}   "
        f"({row['build_layouts_s']:.2f} s, {row['check_covered_ms']:.1f} ms)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
