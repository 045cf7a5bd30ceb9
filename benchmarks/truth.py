"""The planner against real steps on shaped links: predicted and measured seconds of many layouts, in one run.

Four ranks in two nodes, each in a network namespace of its own; links within a node are faster than those between. The
engine, its messages and their order are real, and so is gloo; matrix products sleep as long as the declared rate says
(this machine's cores could not run four ranks side by side). Needs root; without, it says so and ends with 0. All
layouts take about five minutes.

Context parallelism is not among them: its masks cannot be made on an emulated device.

Spearman's correlation of predicted and measured over all layouts, and the regret of running what the planner likes
best instead of what was fastest.

    trainsys bench truth [--steps 3] [--only dp4] [--uneven] [--json]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks._clock import median_s, span
from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange
from trainsys.comm.objects import broadcast_object, gather_objects
from trainsys.comm.topology import Topology
from trainsys.config import (
    BatchConfig,
    ClusterConfig,
    DeviceConfig,
    LinkConfig,
    LinksConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
)
from trainsys.models.geometry import num_params, resolve, split_layers, tensors
from trainsys.parallel.engine import Engine, routes_of, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import initial_state
from trainsys.parallel.step import decide
from trainsys.planner.device import rate
from trainsys.planner.place_plans import place_plans
from trainsys.planner.predict import predict
from trainsys.planner.stages import notation
from trainsys.space.build import build_layout
from trainsys.space.tensor import Space
from trainsys.testing.emulated_device import EmulatedDevice
from trainsys.testing.lab import Lab, missing

CLUSTER = ClusterConfig(
    name="lab",
    nodes=2,
    ranks_per_node=2,
    device=DeviceConfig(name="emulated", tflops=0.012, efficiency=1.0, memory_gbps=5.0),
    intra_node=LinkConfig(gbps=0.02, latency_s=3e-4),
    inter_node=LinkConfig(gbps=0.004, latency_s=3e-4),
)
MODEL = ModelConfig(vocab_size=1024, dim=192, num_layers=4, num_heads=4, num_kv_heads=2, max_seq_len=256)
LAYOUTS: list[tuple[int, dict[str, Any]]] = [  # sequences of a microbatch, parallel
    (2, {"dp": 4}),
    (2, {"dp": 4, "zero": 1}),
    (2, {"dp": 4, "zero": 2}),
    (2, {"dp": 4, "zero": 3}),
    (2, {"dp": 4, "reduction": "fast"}),
    (2, {"dp": 2, "tp": 2}),
    (4, {"dp": 2, "tp": 2, "zero": 1, "sequence_parallel": True}),
    (2, {"dp": 2, "pp": 2}),
    (1, {"dp": 2, "pp": 2}),
    (2, {"dp": 2, "pp": 2, "devices": (0, 2, 1, 3)}),
    (2, {"dp": 2, "pp": 2, "zero": 1, "schedule": "gpipe"}),
    (2, {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved"}),
    (2, {"dp": 2, "pp": 2, "recompute": "full"}),
    (2, {"pp": 4}),
    (1, {"pp": 4, "schedule": "gpipe"}),
    (2, {"tp": 2, "pp": 2}),
    (2, {"tp": 2, "pp": 2, "sequence_parallel": True}),
    (2, {"tp": 4}),
]
UNEVEN = dataclasses.replace(  # every rank a node; the fast pairs are 0 with 3 and 1 with 2; directions differ
    CLUSTER,
    nodes=4,
    ranks_per_node=1,
    links=LinksConfig(
        ((0, 0.004, 0.006, 0.02), (0.005, 0, 0.02, 0.004), (0.004, 0.02, 0, 0.008), (0.02, 0.006, 0.005, 0))
    ),
)
TO_PLACE: list[tuple[int, dict[str, Any]]] = [
    (2, {"dp": 2, "pp": 2}),
    (2, {"dp": 2, "pp": 2, "zero": 1, "schedule": "gpipe"}),
    (2, {"pp": 4}),
    (2, {"dp": 2, "tp": 2}),
    (2, {"dp": 4}),
    (2, {"dp": 4, "reduction": "fast"}),
]


def placed_too() -> list[tuple[int, dict[str, Any]]]:
    """Layouts of `UNEVEN` in plain order, and in the one that the planner finds where it finds a better."""
    found = []
    for microbatch, parallel in TO_PLACE:
        config = dataclasses.replace(config_of(microbatch, **parallel), cluster=UNEVEN)
        measured = rate(UNEVEN, 4)
        (plan,) = place_plans(config, [predict(config, config.parallel, measured)], measured)
        found.append((microbatch, parallel))
        found += [(microbatch, {**parallel, "devices": plan.parallel.devices})] if plan.parallel.devices else []
    return found


def config_of(microbatch: int, **parallel: Any) -> RunConfig:
    """The same 16 sequences of 256 tokens under every layout."""
    return RunConfig(
        model=MODEL,
        cluster=CLUSTER,
        batch=BatchConfig(global_size=16, microbatch_size=microbatch, seq_len=256),
        parallel=ParallelConfig(**parallel),
    )


def with_latency(seconds: Sequence[float], cluster: ClusterConfig = CLUSTER) -> ClusterConfig:
    """`cluster` with what a message takes at least: the one number that cannot be chosen here."""
    inside, between = (
        dataclasses.replace(link, latency_s=s)
        for link, s in zip((cluster.intra_node, cluster.inter_node), seconds, strict=True)
    )
    return dataclasses.replace(cluster, intra_node=inside, inter_node=between)


def body(rank: int, world_size: int, store: Any, config: RunConfig, steps: int) -> dict[str, Any]:
    """One rank: start and end of each step on the common clock, the first of them left out."""
    parallel = config.parallel
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
    topology = Topology.from_config(config.cluster)
    layout = build_layout(
        parallel, layers, range(world_size), config.elastic.chunk, topology.node_of, config.model.vocab_parts
    )
    space = Space(tensors(resolve(config.model)))
    comm = Communicator(store, rank, "gloo", 60.0)
    comm.reconfigure(0, wanted_groups(space, layout, routes_of(config, layout)))
    device = torch.device("cpu")
    state = initial_state(space, layout, rank, resolve(config.model), config.train.seed, torch.float32, device)
    emulated = EmulatedDevice(config.cluster.device.tflops * 1e12 * config.cluster.device.efficiency)
    engine = Engine(config, space, layout, rank, comm, state, device)
    engine.materialize()
    group = comm.group(layout.ranks)
    spans, pipeline_s = [], 0.0
    for step in range(steps + 1):
        batch = Batch(step, {mb: _tokens(config, mb) for mb in engine.microbatches()})
        spans.append(span(group, lambda batch=batch: _step(engine, emulated, batch, group)))
        pipeline_s = engine.executor.events[-1].end_s - spans[-1][0]
    comm.close()
    return {"spans": spans[1:], "asked_s": emulated.asked_s / (steps + 1), "pipeline_s": pipeline_s}


def _step(engine: Engine, emulated: EmulatedDevice, batch: Batch, group: Any) -> None:
    with emulated:
        report = engine.compute(batch)
    reports = gather_objects(group, report)
    decision = broadcast_object(group, None if reports is None else decide(engine.config, reports))
    engine.apply(decision)
    engine.materialize()


def _tokens(config: RunConfig, microbatch: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    size, dice = config.batch.microbatch_size, np.random.default_rng(microbatch)
    rows = torch.from_numpy(dice.integers(0, config.model.vocab_size, (size, config.batch.seq_len + 1)))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), tuple(range(microbatch * size, (microbatch + 1) * size))


def latency(rank: int, world_size: int, store: Any, repeat: int) -> list[float]:
    """Seconds of small exchanges between ranks within a node, then between nodes."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank, "gloo", 60.0)
    comm.reconfigure(0, [members])
    group, found = comm.group(members), []
    for peer in (rank ^ 1, rank ^ 2):
        seconds = []
        for _ in range(repeat):
            time.sleep(0.01)
            group.backend.barrier().wait()
            start = time.perf_counter()
            exchange(group, [(peer, torch.zeros(8), 0)], [(peer, torch.zeros(8), 0)])
            seconds.append(time.perf_counter() - start)
        found.append(median(seconds))
    comm.close()
    return found


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench truth", __doc__.splitlines()[0], "  trainsys bench truth --json")
    parser.add_argument("--steps", type=int, default=3, help="measured per layout, after one that is not")
    parser.add_argument("--only", default="", metavar="TEXT", help="layouts whose notation has it")
    parser.add_argument("--uneven", action="store_true", help="links that all differ; layouts also placed on them")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    why = missing()
    if why:
        print(json.dumps({"skipped": why}) if args.json else f"skipped: {why}")
        return 0
    shape = UNEVEN if args.uneven else CLUSTER
    if not args.json:
        print(f"{Topology.from_config(shape).describe()}; {num_params(MODEL) / 1e6:.2f} M parameters")
    rows = []
    with Lab(Topology.from_config(shape)) as lab:
        cluster = with_latency([median(kind) for kind in zip(*lab.run(latency, 30), strict=True)], shape)
        if not args.json:
            print(f"small messages take {cluster.inter_node.latency_s * 1e3:.2f} ms, between nodes")
        for microbatch, parallel in placed_too() if args.uneven else LAYOUTS:
            config = dataclasses.replace(config_of(microbatch, **parallel), cluster=cluster)
            row = _measure(lab, config, args.steps) if args.only in notation(config.parallel) else None
            if row is not None:
                rows.append(row)
                if not args.json:
                    _show(row)
    summary = summarize(rows)
    if args.json:
        print(json.dumps({"rows": rows, "cluster": dataclasses.asdict(cluster), **summary}))
    else:
        print(
            "Spearman {spearman:.3f}, mean error {mape:.1%}, at most {worst:.1%}; the planner's choice {chosen} "
            "takes {regret:.1%} longer than the fastest, {fastest}".format(**summary)
        )
    return 0 if summary["spearman"] >= 0.9 and summary["regret"] <= 0.05 else 1


def _measure(lab: Lab, config: RunConfig, steps: int) -> dict[str, Any]:
    plan = predict(config, config.parallel)
    results = lab.run(body, config, steps, timeout_s=300)
    measured = median_s([r["spans"] for r in results])
    fast = " fast" if config.parallel.reduction == "fast" else ""
    return {
        "layout": f"{notation(config.parallel)}{fast} mb{config.batch.microbatch_size}",
        "predicted_s": plan.step_s,
        "measured_s": measured,
        "off": plan.step_s / measured - 1,
        "predicted": {k: v for k, v in dataclasses.asdict(plan).items() if k.endswith("_s") and k != "step_s"},
        "asked_s": max(r["asked_s"] for r in results),
        "pipeline_s": median(r["pipeline_s"] for r in results),
    }


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rank correlation, mean error, and what choosing by the prediction costs."""
    predicted, measured = (np.array([row[key] for row in rows]) for key in ("predicted_s", "measured_s"))
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, measured)]
    chosen, fastest = int(predicted.argmin()), int(measured.argmin())
    return {
        "spearman": float(np.corrcoef(*ranks)[0, 1]) if len(rows) > 1 else 1.0,
        "mape": float(np.mean(np.abs(predicted / measured - 1))),
        "worst": float(np.max(np.abs(predicted / measured - 1))),
        "chosen": rows[chosen]["layout"],
        "fastest": rows[fastest]["layout"],
        "regret": float(measured[chosen] / measured[fastest] - 1),
    }


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['layout']:38} predicted {row['predicted_s']:6.3f} s  measured {row['measured_s']:6.3f} s  "
        f"{row['off']:+6.1%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
