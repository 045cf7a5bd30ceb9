"""The vocabulary on the last stage or on all: measured step, throughput and memory, as the vocabulary grows.

Stages sleep as long as FLOPs say, in units of a stage's forward without the head; messages and the executor are real,
but messages are small: the time of hidden states on the wire is not in it.
`off` is measured / simulated - 1. Memory is the planner's, with the activations that the run kept.

    trainsys bench vocabulary [--layers 16] [--dim 4096] [--seq 2048] [--vocab-k 32,64] [--t-ms 30] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks._clock import median_s, span
from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.comm.tree import Tree
from trainsys.config import BatchConfig, ModelConfig, ParallelConfig, RunConfig, TrainConfig
from trainsys.parallel.executor import Executor
from trainsys.parallel.vocabulary_lane import VocabularyLane
from trainsys.planner.memory import stage_memory
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import relative_costs, schedule_of
from trainsys.schedule import Costs, Schedule, simulate
from trainsys.testing import RankPool
from trainsys.testing.emulated import EmulatedStage, EmulatedVocabulary

RANKS = 4
SHAPE = (1, 16, 16)  # of the emulated messages
WAYS: dict[str, dict[str, Any]] = {
    "1f1b, head on the last": {},
    "1f1b, one barrier": {"vocabulary": "one_barrier"},
    "1f1b, two barriers": {"vocabulary": "two_barriers"},
    "vhalf, head on the last": {"schedule": "vhalf", "vp": 2},
    "vhalf, one barrier": {"schedule": "vhalf", "vp": 2, "vocabulary": "one_barrier"},
}


def run_config(model: ModelConfig, way: str, vocab_size: int, seq_len: int, microbatches: int) -> RunConfig:
    """One pipeline of four ranks."""
    parallel = ParallelConfig(pp=RANKS, **WAYS[way])
    parts = 1 if parallel.vocabulary == "ends" else RANKS
    return RunConfig(
        model=replace(model, vocab_size=vocab_size, vocab_parts=parts), batch=BatchConfig(microbatches, 1, seq_len),
        parallel=parallel, train=TrainConfig(dtype="bfloat16"),
    )  # fmt: skip


def scheduled(config: RunConfig, t: float) -> tuple[Schedule, Costs]:
    """The schedule of a config, and what its actions take if F of a stage's layers takes `t` seconds."""
    stages, parallel = Stages.of(config.model, config.parallel), config.parallel
    costs = relative_costs(config.model, stages, config.batch.seq_len, False, parallel.vocabulary)
    unit = t / (costs.f_s[0] * stages.vp)

    def scaled(row: Sequence[float] | None) -> list[float] | None:
        return row and [unit * s for s in row]  # type: ignore[return-value]

    f_s, b_s, i_s, w_s, s_s, t_s = map(scaled, (costs.f_s, costs.b_s, costs.i_s, costs.w_s, costs.s_s, costs.t_s))
    assert f_s is not None and b_s is not None
    return schedule_of(config, stages), Costs(f_s, b_s, i_s=i_s, w_s=w_s, s_s=s_s, t_s=t_s)


def body(rank: int, world_size: int, store: Any, config: RunConfig, t: float, repeat: int) -> dict[str, Any]:
    """One lane: start and end of each repetition on the common clock, and the peak of live activations."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group = comm.group(members)
    schedule, costs = scheduled(config, t)
    hosted = sorted(stage for (stage, _), lane in schedule.placement.items() if lane == rank)
    last, passes = schedule.routes.num_stages - 1, config.parallel.vocabulary != "ends"
    runners = {
        s: EmulatedStage(costs.f_s[s], costs.b_s[s], s == 0 and not passes, s == last and not passes, SHAPE,
                         costs.i_s and costs.i_s[s], costs.w_s and costs.w_s[s]) for s in hosted
    }  # fmt: skip
    vocabulary, rank_of = None, dict(enumerate(members))
    if passes:
        assert costs.s_s is not None and costs.t_s is not None
        parts = EmulatedVocabulary(
            costs.s_s[hosted[0]], costs.t_s[hosted[0]], config.parallel.vocabulary == "one_barrier", SHAPE
        )
        of_lane = {lane: range(lane, lane + 1) for lane in members}
        boundary = runners[hosted[0]].boundary
        vocabulary = VocabularyLane(parts, Tree(world_size), of_lane, schedule, rank, boundary, group, rank_of)
    executor = Executor(schedule, rank, runners, group, rank_of, vocabulary=vocabulary)
    spans = [span(group, executor.run) for _ in range(repeat + 1)]  # the first connects and warms up
    comm.close()
    return {"spans": spans[1:], "peak": executor.peak_activations}


def memory_gib(config: RunConfig, peaks: Sequence[int]) -> list[float]:
    """GiB of a rank of each stage that trains with so many (run, microbatch) activations; without mirrors."""
    stages = Stages.of(config.model, config.parallel)
    memory = stage_memory(config, stages, stage_sizes(config.model, stages, 0), peaks)
    return [m.total - m.mirror - m.transition for m in memory]


def measured(pool: RankPool, config: RunConfig, way: str, t: float, repeat: int) -> dict[str, Any]:
    """One way with one vocabulary."""
    results = pool.run(body, RANKS, config, t, repeat, timeout_s=300)
    step_s, predicted = median_s([r["spans"] for r in results]), simulate(*scheduled(config, t))
    stages, peaks = Stages.of(config.model, config.parallel), [r["peak"] for r in results]
    totals = memory_gib(config, peaks)
    return {
        "way": way,
        "vocab_size": config.model.vocab_size,
        "measured_s": step_s,
        "simulated_s": predicted.step_s,
        "off": step_s / predicted.step_s - 1,
        "peak_microbatches": [peak / stages.vp for peak in peaks],
        "simulated_peak": [peak / stages.vp for peak in predicted.peak_activations],
        "memory_gib": totals,
        "memory_spread": max(totals) / min(totals) - 1,
    }


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench vocabulary", __doc__.splitlines()[0], "  trainsys bench vocabulary --json")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--vocab-k", default="32,64,128,256", help="vocabulary sizes in units of 1024")
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--t-ms", type=float, default=30.0, help="F of a stage's layers in ms")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    model = ModelConfig(dim=args.dim, num_layers=args.layers, num_heads=32, max_seq_len=args.seq)
    pool, rows = RankPool(), list[dict[str, Any]]()
    for vocab_size in (1024 * int(k) for k in args.vocab_k.split(",")):
        naive = naive_simulated = 0.0
        for way in WAYS:
            config = run_config(model, way, vocab_size, args.seq, args.microbatches)
            row = measured(pool, config, way, args.t_ms / 1e3, args.repeat)
            naive, naive_simulated = naive or row["measured_s"], naive_simulated or row["simulated_s"]
            row["throughput"] = naive / row["measured_s"]
            rows.append(row | {"throughput_simulated": naive_simulated / row["simulated_s"]})
    pool.close()
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    print(
        f"P={RANKS} m={args.microbatches} llama {args.layers} layers × {args.dim}, seq {args.seq}, F={args.t_ms:g} ms"
    )
    for row in rows:
        peaks = " ".join(f"{peak:g}" for peak in row["peak_microbatches"])
        gib = " ".join(f"{n:.1f}" for n in row["memory_gib"])
        print(
            f"V={row['vocab_size'] // 1024:3}k {row['way']:23} measured {row['measured_s']:.3f} s  simulated "
            f"{row['simulated_s']:.3f} s ({row['off']:+.1%})  throughput ×{row['throughput']:.2f} "
            f"(×{row['throughput_simulated']:.2f})  kept {peaks}  "
            f"GiB {gib} (spread {row['memory_spread']:.0%})"
        )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
