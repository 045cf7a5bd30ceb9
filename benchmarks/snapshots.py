"""What copies in peers' memory cost: seconds of a step with and without them, by way, and bytes on the wire.

Four ranks (dp4, ZeRO-1, two nodes of two) take turns with a few steps of each variant, so that whatever else the
machine does hits all alike. Layers sleep for as long as the step shall take, since four ranks that compute on fewer
cores could not overlap anything; gradients are random and of full size, and reduction, snapshot, optimizer and gather
of the weights are the real ones. Overheads are medians, and in brackets the middle half, of the differences to the
steps without copies that ran last: steps that begin before the verdict are compared with such. The bar is for the way
that is the default, with one copy, which has three turns in a round.

    trainsys bench snapshots [--step-ms 100] [--rounds 8] [--dim 128] [--json]
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.config import BatchConfig, ElasticConfig, ModelConfig, OptimConfig, ParallelConfig, RunConfig
from trainsys.elastic.heap import keep_heap
from trainsys.models.geometry import num_params, resolve, tensors
from trainsys.parallel.engine import Engine, routes_of, stages_of, wanted_groups
from trainsys.parallel.optimizer import Update, learning_rate
from trainsys.parallel.sleeping import Emulation, SleepingRunner
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import initial_state
from trainsys.parallel.step import Decision
from trainsys.planner.step_schedule import schedule_of
from trainsys.schedule.actions import Kind
from trainsys.space.build import build_layout
from trainsys.space.tensor import Space
from trainsys.testing import RankPool

RANKS, BLOCK = 4, 10
BAR = 0.03  # of a step
VARIANTS = [  # way, copies of each piece beyond the first, whether the next step begins before the verdict
    ("replay", 0, False), ("replay", 1, False), ("replay", 2, False), ("full", 1, False), ("full", 2, False),
    ("delta", 1, False), ("replay", 0, True), ("replay", 1, True), ("replay", 2, True), ("full", 1, True),
]  # fmt: skip
TURNS = (0, 1, 2, 0, 1, 3, 4, 0, 1, 5, 6, 7, 8, 9)  # of variants in a round
DEFAULT = (ElasticConfig().snapshot, 1, OptimConfig().post_validation)


class Noisy(SleepingRunner):
    """Sleeps, then hands over gradients that are not zero."""

    def _gradients(self, microbatch: int, part: range) -> None:
        if not hasattr(self, "_noise"):
            self._noise = {name: torch.randn_like(p) for name, p in self.params.items()}
        self._on_grads(microbatch, {name: self._noise[name].clone() for name in self._parts[part]})


@dataclass(frozen=True)
class Asleep(Emulation):
    """Sleeps of equal length."""

    def runner(self, stage: int) -> Any:
        return partial(Noisy, {kind: row[stage] for kind, row in self.seconds.items()}, self.scale, self.slow)


class Lane:
    """One variant on one rank."""

    def __init__(self, rank: int, store: Any, config: RunConfig, step_s: float, number: int) -> None:
        space, self.config = Space(tensors(resolve(config.model))), config
        layout = build_layout(
            config.parallel, [config.model.num_layers], range(RANKS), config.elastic.chunk, lambda r: r // 2,
            tolerate=config.elastic.tolerate,
        )  # fmt: skip
        self.comm = Communicator(store, rank)
        self.comm.reconfigure(number, wanted_groups(space, layout, routes_of(config, layout)))
        count, device = config.batch.global_size // RANKS, torch.device("cpu")
        seconds = {kind: [step_s / count / 3 * (2 if kind is Kind.B else 1)] for kind in (Kind.F, Kind.B)}
        asleep = Asleep(schedule_of(config, stages_of(config, layout)), seconds, None, lambda src, dst: 0.0)
        state = initial_state(space, layout, rank, resolve(config.model), 0, torch.float32, device)
        self.engine = Engine(config, space, layout, rank, self.comm, state, device, emulation=asleep)
        self.engine.materialize()
        self.group, self.number, self.sent = self.comm.group(layout.ranks), 0, 0
        self._kept = threading.Event()

    def block(self) -> float:
        """Seconds of a step, from several in a row: all ranks ready to all ranks done, and all copies up to date."""
        self._step()  # what other variants left in the caches goes
        assert self._kept.wait(60)
        self.engine.state.settle()
        self.group.all_reduce(torch.zeros(1))
        start = time.perf_counter()
        for _ in range(BLOCK):
            self._step()
        assert self._kept.wait(60)
        self.engine.state.settle()
        self.group.all_reduce(torch.zeros(1))
        return (time.perf_counter() - start) / BLOCK

    def _step(self) -> None:
        engine, ahead, empty = self.engine, self.config.optim.post_validation, torch.empty(0)
        engine.compute(Batch(self.number, dict.fromkeys(engine.microbatches(), (empty, empty, ()))))
        self.sent = engine.pending[-1].sent_bytes
        update = Update(self.number, learning_rate(self.config.optim, self.number, self.config.train.steps), 1.0)
        if ahead and self.number:  # the verdict on the step before
            assert self._kept.wait(60)
            engine.apply(Decision(self.number - 1, 0.0, 1.0, self._before.lr, 1.0))
        self._kept.clear()
        engine.when_kept(self._told)
        if ahead:
            engine.foresee(update)
        else:
            engine.apply(Decision(self.number, 0.0, 1.0, update.lr, 1.0))
            engine.materialize()
        self._before, self.number = update, self.number + 1

    def _told(self, error: Exception | None) -> None:
        assert error is None, error
        self._kept.set()


def body(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig], step_s: float, rounds: int) -> Any:
    """One rank's part, of each variant: by turn the seconds of a step, and how many more those are than without copies;
    and the bytes that it sends to peers in a step."""
    keep_heap()  # as ranks do that train
    lanes = [Lane(rank, store, config, step_s, i) for i, config in enumerate(configs)]
    seconds: list[list[tuple[float, float]]] = [[] for _ in lanes]
    base = 0.0
    for turn in range(rounds + 1):
        if turn and not rank and sys.stderr.isatty():
            print(f"round {turn} of {rounds}", file=sys.stderr)
        for i in TURNS:
            took = lanes[i].block()
            base = base if configs[i].elastic.tolerate else took
            if turn:  # in the first round memory is fresh
                seconds[i].append((took, took - base))
    for lane in lanes:
        lane.comm.close()
    return seconds, [lane.sent for lane in lanes]


def measure(pool: RankPool, step_s: float, rounds: int, dim: int) -> list[dict[str, Any]]:
    """One row per variant."""
    model = ModelConfig(vocab_size=512, dim=dim, num_layers=4, num_heads=4, max_seq_len=32)
    plain = RunConfig(
        model=model, batch=BatchConfig(8, 1, 32), parallel=ParallelConfig(dp=RANKS, zero=1), optim=OptimConfig(clip=0.0)
    )
    configs = [
        replace(
            plain, optim=replace(plain.optim, post_validation=ahead),
            elastic=replace(plain.elastic, snapshot=way, tolerate=f),  # type: ignore[arg-type]
        )
        for way, f, ahead in VARIANTS
    ]  # fmt: skip
    found = pool.run(body, RANKS, configs, step_s, rounds, timeout_s=300)
    seconds, params = found[0][0], num_params(model)
    rows = []
    for i, (way, f, ahead) in enumerate(VARIANTS):
        base = statistics.median(took for took, _ in seconds[VARIANTS.index(("replay", 0, ahead))])
        shares = [more / base for _, more in seconds[i]]
        quartiles = statistics.quantiles(shares, method="inclusive") if len(shares) > 1 else shares * 3
        rows.append({
            "way": way if f else "none", "tolerate": f, "ahead": ahead,
            "step_s": statistics.median(took for took, _ in seconds[i]),
            "overhead": quartiles[1], "middle_half": (quartiles[0], quartiles[2]),
            "bytes_per_parameter": sum(sent[i] for _, sent in found) / params, "params": params,
        })  # fmt: skip
    return rows


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench snapshots", __doc__.splitlines()[0], "  trainsys bench snapshots --json")
    parser.add_argument("--step-ms", type=float, default=100.0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if args.step_ms <= 0 or args.rounds < 1 or args.dim < 8 or args.dim % 8:
        raise ValueError(
            f"--step-ms={args.step_ms:g} must be positive, --rounds={args.rounds} at least 1, --dim={args.dim} a "
            "multiple of 8"
        )
    pool = RankPool()
    try:
        rows = measure(pool, args.step_ms / 1e3, args.rounds, args.dim)
    finally:
        pool.close()
    (usual,) = (row for row in rows if (row["way"], row["tolerate"], row["ahead"]) == DEFAULT)
    held = usual["overhead"] <= BAR
    if args.json:
        print(json.dumps({"bar": BAR, "held": held, "rows": rows}))
        return 0 if held else 1
    print(f"{rows[0]['params']:,} parameters on {RANKS} ranks; bar {BAR:.0%} of a step")
    for row in rows:
        print(
            "{way:7} tolerate={tolerate} {begins:20} step {ms:7.1f} ms  overhead {percent:+6.2f} % "
            "({low:+.1f} to {high:+.1f})  {bytes_per_parameter:5.2f} B per parameter".format(
                **row,
                begins=_begins(row),
                ms=1e3 * row["step_s"],
                percent=100 * row["overhead"],
                low=100 * row["middle_half"][0],
                high=100 * row["middle_half"][1],
            )
        )
    print(f"bar: {usual['way']}, the default, {usual['overhead']:+.2%}: {'held' if held else 'missed'}")
    return 0 if held else 1


def _begins(row: dict[str, Any]) -> str:
    """When the step after a row's begins."""
    return "ahead of the verdict" if row["ahead"] else "after the verdict"
