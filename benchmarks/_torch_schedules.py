"""The schedules of torch.distributed.pipelining (2.13) as CSV, each built in one process."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch.distributed.pipelining import schedules as peer

CLASSES: dict[str, Any] = {
    "GPipe": peer.ScheduleGPipe,
    "1F1B": peer.Schedule1F1B,
    "LoopedBFS": peer.ScheduleLoopedBFS,
    "Interleaved1F1B": peer.ScheduleInterleaved1F1B,
    "InterleavedZeroBubble": peer.ScheduleInterleavedZeroBubble,
    "ZBV": peer.ScheduleZBVZeroBubble,
    "DualPipeV": peer.ScheduleDualPipeV,
}
PLAIN = ("GPipe", "1F1B")  # one stage per rank, with an engine of their own; two for the others
FOLDED = ("ZBV", "DualPipeV")

Orders = Mapping[int, Sequence[Any]]  # rank -> its actions


def vp_of(name: str) -> int:
    """Stages on each rank."""
    return 1 if name in PLAIN else 2


def as_torch_says(name: str, ranks: int, microbatches: int) -> Orders:
    """The computations, and for GPipe and 1F1B REDUCE_GRAD; of 1F1B they are wrong on the last rank."""
    if name in PLAIN:
        found: Orders = CLASSES[name](_stage(0, ranks, ranks), microbatches)._get_pipeline_order()
        return found
    made: Orders = _runtime(CLASSES[name], name, ranks, microbatches).pipeline_order
    return made


def torch_csv(name: str, ranks: int, microbatches: int) -> tuple[str, str]:
    """Both formats, compute only and with comms; the last rank of 1F1B put right."""
    orders = {rank: [a for a in row if a is None or a.is_compute_op] for rank, row in
              as_torch_says(name, ranks, microbatches).items()}  # fmt: skip
    if name == "1F1B":
        off = orders[ranks - 1][0].microbatch_index
        orders[ranks - 1] = [
            a if a.computation_type.value == "B" else a._replace(microbatch_index=a.microbatch_index - off)
            for a in orders[ranks - 1]
        ]
    runtime = _runtime(peer._PipelineScheduleRuntime, name, ranks, microbatches)
    runtime._prepare_schedule_with_comms(orders)
    return as_text(orders), as_text(runtime.pipeline_order_with_comms)


def as_text(orders: Orders) -> str:
    """As torch's ``_dump_csv`` writes it."""
    file = io.StringIO()
    csv.writer(file).writerows(orders.values())
    return file.getvalue()


def _runtime(make: Any, name: str, ranks: int, microbatches: int) -> Any:
    count = ranks * vp_of(name)
    hosted = (0,) if name in PLAIN else (0, count - 1) if name in FOLDED else (0, ranks)
    return make([_stage(s, count, ranks) for s in hosted], microbatches, loss_fn=lambda *_: None)


def _stage(index: int, count: int, ranks: int) -> Any:
    """What a schedule asks a stage of before anything runs."""
    return SimpleNamespace(
        stage_index=index, num_stages=count, group_size=ranks, group_rank=0, is_first=index == 0,
        is_last=index == count - 1, submod=None,
    )  # fmt: skip
