"""The methods of each collective, as rank bodies: ours, and the backend's own beside them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.collectives import Collectives
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import Group
from trainsys.comm.wires import Wires

Run = Callable[[Tensor], Tensor]
Span = tuple[float, float]
NATIVE = "gloo"
SOON_S = 0.03
DECAY = 0.5  # of an all-scan's state from member to member: a power of two, so that sums are exact


def data_of(collective: str, rank: int, n: int, elements: int) -> Tensor:
    """What `rank` begins with: small whole numbers. `elements` is of one member's piece."""
    dice = torch.Generator().manual_seed(rank)
    pieces = 1 if collective in ("all_gather", "all_scan") else n
    return torch.randint(0, 64, (pieces * elements,), generator=dice).float()


def expected(collective: str, rank: int, n: int, elements: int) -> Tensor:
    """What `rank` ends with."""
    data = [data_of(collective, r, n, elements) for r in range(n)]
    if collective == "all_gather":
        return torch.cat(data)
    if collective == "all_to_all":
        return torch.cat([one.view(n, -1)[rank] for one in data])
    if collective == "all_scan":
        state = data[0]
        for one in data[1 : rank + 1]:
            state = state * DECAY + one
        return state
    total = torch.stack(data).sum(0)
    return total.view(n, -1)[rank].clone() if collective == "reduce_scatter" else total


def run_of(collective: str, method: str, group: Group, wires: Wires) -> Run:
    """How `method` does it. The result is a new tensor."""
    if method == NATIVE:
        return partial(_NATIVE[collective], group)
    if collective == "all_to_all":
        return Collectives(group, group.ranks, wires).all_to_all
    if collective == "all_scan":
        ours, blocks = Collectives(group, group.ranks, wires), int(method.removeprefix("chain").lstrip("-") or 0)
        return lambda own: ours.all_scan(own, DECAY, blocks)
    found: Run = getattr(Collectives(group, group.ranks, wires, method), collective)
    return found


def _native_gather(group: Group, own: Tensor) -> Tensor:
    whole = own.new_empty(group.size, own.numel())
    group.backend.allgather([list(whole.unbind())], [own]).wait()
    return whole.view(-1)


def _native_reduce_scatter(group: Group, own: Tensor) -> Tensor:
    piece = own.new_empty(own.numel() // group.size)
    group.backend._reduce_scatter_base(piece, own).wait()
    return piece


def _native_all_reduce(group: Group, own: Tensor) -> Tensor:
    whole = own.clone()
    group.backend.allreduce([whole]).wait()
    return whole


def _native_all_to_all(group: Group, own: Tensor) -> Tensor:
    whole = torch.empty_like(own)
    group.backend.alltoall_base(whole, own, [], []).wait()
    return whole


def _native_scan(group: Group, own: Tensor) -> Tensor:
    """All states are gathered, and each member adds those before it (LASP-2, arXiv 2502.07563)."""
    states = _native_gather(group, own).view(group.size, -1)
    state = states[0].clone()
    for one in states[1 : group.rank + 1]:
        state.mul_(DECAY).add_(one)
    return state


_NATIVE: dict[str, Callable[[Group, Tensor], Tensor]] = {
    "all_gather": _native_gather,
    "reduce_scatter": _native_reduce_scatter,
    "all_reduce": _native_all_reduce,
    "all_to_all": _native_all_to_all,
    "all_scan": _native_scan,
}


def agreed_start(group: Group) -> float:
    """Wait for a moment that is the same for all: those whom a barrier lets go first keep others from the cores."""
    group.backend.barrier().wait()
    start = torch.tensor([time.perf_counter() + SOON_S], dtype=torch.float64)
    group.backend.broadcast([start]).wait()
    time.sleep(max(0.0, float(start) - time.perf_counter()))
    return float(start)


def body(
    rank: int,
    world_size: int,
    store: Any,
    wires: Wires,
    collective: str,
    methods: tuple[str, ...],
    elements: int,
    repeats: int,
) -> dict[str, tuple[list[Span], float]]:
    """One rank: of each method the spans of its repetitions, all methods in turn, and the greatest error of any."""
    comm, members = Communicator(store, rank), tuple(range(world_size))
    comm.reconfigure(0, [members])
    group, own = comm.group(members), data_of(collective, rank, world_size, elements)
    right = expected(collective, rank, world_size, elements)
    runs = {method: run_of(collective, method, group, wires) for method in methods}
    spans: dict[str, list[Span]] = {method: [] for method in methods}
    errors = dict.fromkeys(methods, 0.0)
    for _ in range(repeats):
        for method, run in runs.items():
            start = agreed_start(group)
            found = run(own)
            spans[method].append((start, time.perf_counter()))
            errors[method] = max(errors[method], float((found - right).abs().max()))
    comm.close()
    return {method: (spans[method], errors[method]) for method in methods}
