"""One rank's part of a profile, and the whole of it on the first rank."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch._C._distributed_c10d import Store

from trainsys.comm.communicator import Communicator
from trainsys.config import RunConfig
from trainsys.profile.collectives import measure_collectives
from trainsys.profile.compute import Compute, measure_compute
from trainsys.profile.links import Direction, measure_links

BUDGET_S = 20.0  # of computing


@dataclass(frozen=True)
class Seen:
    """What one rank reports."""

    node: int
    device: str
    memory_gib: float
    links: list[Direction]
    collectives: list[tuple[str, int, float]]


@dataclass(frozen=True)
class Measured:
    """Everything, by rank where it differs.

    Attributes:
        cores: of the first rank's machine, where ranks share them; 0: each has a device of its own.
    """

    seen: list[Seen]
    compute: Compute
    backend: str
    cores: int
    seconds: float


def profile_rank(
    rank: int, world_size: int, store: Store, config: RunConfig, node: int, budget_s: float = BUDGET_S
) -> Measured | None:
    """Measure together with the other ranks; the result on rank 0, None elsewhere.

    Args:
        node: of this rank.
        budget_s: of computing; links and collectives take what they take.
    """
    start = perf_counter()
    device = _device()
    backend = "nccl" if device.type == "cuda" else "gloo"
    comm = Communicator(store, rank, backend)
    members = tuple(range(world_size))
    comm.reconfigure(0, [members])
    group = comm.group(members)
    compute = measure_compute(config, device, budget_s) if rank == 0 else None
    group.backend.barrier().wait()
    links = measure_links(group, device)
    seen = Seen(node, _name(device), _memory_gib(device), links, measure_collectives(group, device))
    store.set(f"profile/{rank}", json.dumps(dataclasses.asdict(seen)))
    group.backend.barrier().wait()
    answer = None
    if compute is not None:
        every = [_seen(json.loads(store.get(f"profile/{r}"))) for r in members]
        cores = (os.cpu_count() or 1) if device.type == "cpu" else 0
        answer = Measured(every, compute, backend, cores, perf_counter() - start)
    group.backend.barrier().wait()
    comm.close()
    return answer


def profile_local(
    rank: int, world_size: int, store: Store, config: RunConfig, budget_s: float = BUDGET_S
) -> Measured | None:
    """`profile_rank` where all ranks were started on this machine."""
    return profile_rank(rank, world_size, store, config, rank // config.cluster.ranks_per_node, budget_s)


def _seen(values: dict[str, Any]) -> Seen:
    links = [Direction(**link) for link in values.pop("links")]
    rows = [(name, int(size), float(seconds)) for name, size, seconds in values.pop("collectives")]
    return Seen(**values, links=links, collectives=rows)


def _device() -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu of {socket.gethostname()}"


def _memory_gib(device: torch.device) -> float:
    """What a layout may use: what is free now; of a CPU's memory its share among the machine's ranks comes later."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0]) / 2**30
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2**30
