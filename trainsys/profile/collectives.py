"""Collectives over all ranks, and what the links just measured say of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch

from trainsys.comm.group import Group
from trainsys.comm.topology import Topology

SIZES = (64 << 10, 1 << 20, 16 << 20)  # bytes that every rank holds, or all have together
_TIMES = 3


@dataclass(frozen=True)
class Collective:
    """One collective.

    Attributes:
        num_bytes: that every rank holds before an all-reduce or all-to-all, after an all-gather.
        bus_gbps: as nccl-tests counts: what a ring moves past each rank, over the time.
        predicted_s: of a ring on the measured links (Thakur, Rabenseifner and Gropp 2005).
    """

    name: str
    num_bytes: int
    seconds: float
    bus_gbps: float
    predicted_s: float


def measure_collectives(group: Group, device: torch.device) -> list[tuple[str, int, float]]:
    """(name, bytes, seconds of this rank), the least of a few repetitions; all ranks call it together."""
    found = []
    for num_bytes in SIZES:
        numel = num_bytes // 4 // group.size * group.size
        whole = torch.ones(numel, device=device)
        part, out = torch.ones(numel // group.size, device=device), torch.empty(numel, device=device)
        actions: dict[str, Callable[[], object]] = {
            "all_reduce": lambda whole=whole: group.backend.allreduce([whole]).wait(),  # type: ignore[misc]
            "all_gather": lambda out=out, part=part: group.backend._allgather_base(out, part).wait(),  # type: ignore[misc]
            "all_to_all": lambda out=out, whole=whole: group.backend.alltoall_base(out, whole, [], []).wait(),  # type: ignore[misc]
        }
        for name, action in actions.items():
            found.append((name, 4 * numel, min(_once_s(group, action) for _ in range(_TIMES))))
    return found


def _once_s(group: Group, action: Callable[[], object]) -> float:
    group.backend.barrier().wait()
    start = perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


def judged(measured: list[tuple[str, int, float]], topology: Topology) -> list[Collective]:
    """The slowest rank's times beside the prediction. `measured` in order, with the slowest rank's seconds."""
    size, link = topology.num_ranks, topology.ring(range(topology.num_ranks))
    rows = []
    for name, num_bytes, seconds in measured:
        times = 2 if name == "all_reduce" else 1
        passed = times * num_bytes * (size - 1) / size
        predicted = times * (size - 1) * link.transfer_s(num_bytes / size) if link else 0.0
        rows.append(Collective(name, num_bytes, seconds, passed / seconds / 1e9, predicted))
    return rows
