"""What each ZeRO stage saves: bytes that weights and gradients take on a rank, counted while a step is computed.

Counted is what the C library has handed out (its own statistics, not the resident set), every 0.2 ms, beyond what there
was before the engine was built: the optimizer's state is not in it, activations are. Few tokens keep these small.

    trainsys bench zero-memory [--ranks 4] [--layers 8] [--dim 256] [--microbatches 8] [--json]
"""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from collections.abc import Sequence
from typing import Any

import torch

from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.config import BatchConfig, ModelConfig, ParallelConfig, RunConfig
from trainsys.models.geometry import num_params, resolve, tensors
from trainsys.parallel.engine import DTYPES, Engine, routes_of, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import initial_state, master_dtype
from trainsys.planner.predict import worst_memory
from trainsys.planner.stages import Stages
from trainsys.space.build import build_layout
from trainsys.space.tensor import Space
from trainsys.testing import RankPool

MIB = 1 << 20
STEPS = 3
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of mallopt(3)


class _MallInfo2(ctypes.Structure):
    """struct mallinfo2 of glibc; in use is ``uordblks + hblkhd``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class Meter:
    """Most bytes in use at once while `running`, sampled by a thread of its own."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.mallinfo2.restype = _MallInfo2
        self._libc.mallopt(M_ARENA_MAX, 1)  # the statistics are of the first arena alone,
        self._libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)  # and of mapped blocks
        self._running, self.peak = threading.Event(), 0

    def in_use(self) -> int:
        info = self._libc.mallinfo2()
        return int(info.uordblks + info.hblkhd)

    def start(self) -> None:
        self._running.set()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._running.clear()
        self._thread.join()

    def _sample(self) -> None:
        pause = threading.Event()
        while self._running.is_set():
            self.peak = max(self.peak, self.in_use())
            pause.wait(2e-4)


def body(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig]) -> list[tuple[int, int]]:
    """One rank: for each config the peak of bytes in a step, and before the gradients are reduced, beyond the state."""
    meter, found = Meter(), []
    for generation, config in enumerate(configs):
        space, model = Space(tensors(resolve(config.model))), resolve(config.model)
        layout = build_layout(
            config.parallel, [model.num_layers], range(world_size), config.elastic.chunk, lambda r: r // 2
        )
        comm = Communicator(store, rank)
        comm.reconfigure(generation, wanted_groups(space, layout, routes_of(config, layout)))
        group, device, dtype = comm.group(layout.ranks), torch.device("cpu"), DTYPES[config.train.dtype]
        state = initial_state(space, layout, rank, model, config.train.seed, master_dtype(dtype), device)
        gc.collect()
        before, reduced = meter.in_use(), [0]

        def at(phase: str, reduced: list[int] = reduced) -> None:
            if phase == "reduce":
                reduced[0] = meter.peak

        engine = Engine(config, space, layout, rank, comm, state, device, at)
        engine.materialize()
        ids = torch.randint(0, model.vocab_size, (config.batch.microbatch_size, config.batch.seq_len + 1))
        for step in range(STEPS):
            group.backend.barrier().wait()
            data = (ids[:, :-1], ids[:, 1:], tuple(range(config.batch.microbatch_size)))
            meter.peak = 0
            meter.start()
            engine.compute(Batch(step, dict.fromkeys(engine.microbatches(), data)))
            meter.stop()
            del engine.grad
        found.append((meter.peak - before, reduced[0] - before))
        del engine, state
        comm.close()
    return found


def config_of(zero: int, args: Any) -> RunConfig:
    return RunConfig(
        model=ModelConfig(vocab_size=8 * args.dim, dim=args.dim, num_layers=args.layers, max_seq_len=16),
        batch=BatchConfig(args.microbatches, 1, 16),
        parallel=ParallelConfig(dp=args.ranks, zero=zero),
    )


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench zero-memory", __doc__.splitlines()[0], "  trainsys bench zero_memory --json")
    for name, default in (("ranks", 4), ("layers", 8), ("dim", 256), ("microbatches", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    configs = [config_of(zero, args) for zero in range(4)]
    pool = RankPool()
    results = pool.run(body, args.ranks, configs, timeout_s=600)
    pool.close()
    rows = []
    for zero, config in enumerate(configs):
        plan = worst_memory(config, Stages.of(config.model, config.parallel))
        rows.append(
            {
                "zero": zero,
                "step_mib": max(r[zero][0] for r in results) / MIB,
                "backward_mib": max(r[zero][1] for r in results) / MIB,
                "planned_mib": 1024 * (plan.parameters + plan.gradients),
                "planned_activations_mib": 1024 * (plan.activations + plan.logits),
            }
        )
    weights = num_params(configs[0].model) * 4 / MIB
    if args.json:
        print(json.dumps({"ranks": args.ranks, "weights_mib": weights, "rows": rows}))
        return 0
    print(f"{args.ranks} ranks, weights of {weights:.1f} MiB, {args.microbatches} microbatches; MiB beyond the state")
    for row in rows:
        planned = f"planned {row['planned_mib']:6.1f} + {row['planned_activations_mib']:.1f} of activations"
        print(
            f"zero {row['zero']}  whole step {row['step_mib']:6.1f}  until reduce {row['backward_mib']:6.1f}  {planned}"
        )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
