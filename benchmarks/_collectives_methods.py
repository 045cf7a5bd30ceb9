"""The methods of each collective, as rank bodies: datapaths run by `flow`, direct exchanges, and the backend's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.communicator import Communicator
from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_check import check
from trainsys.comm.datapath_time import best_blocks
from trainsys.comm.datapaths import DATAPATHS
from trainsys.comm.exchange import exchange
from trainsys.comm.flow import Gather
from trainsys.comm.flow_back import Reduce
from trainsys.comm.group import Group
from trainsys.comm.routed import route, route_back
from trainsys.comm.wires import Wires

Run = Callable[[Group, Tensor], Tensor]
Span = tuple[float, float]
NATIVE = "gloo"
SOON_S = 0.03
DECAY = 0.5  # of an all-scan's state from member to member: a power of two, so that sums are exact


@cache
def datapath(method: str, wires_key: int) -> Datapath:
    """Checked once; the wires are those last given to `remember`."""
    path = DATAPATHS[method](_wires[wires_key], 0)
    check(path)
    return path


_wires: dict[int, Wires] = {}


def remember(wires: Wires) -> int:
    """A key for `wires`, which cannot be hashed."""
    _wires[id(wires)] = wires
    return id(wires)


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


def run_of(collective: str, method: str, wires: Wires, elements: int) -> Run:
    """How `method` does it. The result is a new tensor."""
    if method == NATIVE:
        return _NATIVE[collective]
    if collective == "all_to_all":
        return _all_to_all
    if collective == "all_scan":
        return lambda group, own: _all_scan(group, own, scan_blocks(method, wires, elements))
    path = datapath(method, remember(wires))
    there, back = route(path, lambda _: 1), route_back(path, lambda _: 1)
    ends = [
        0,
        *torch.tensor([part.numel() for part in torch.empty(elements).tensor_split(path.slices)]).cumsum(0).tolist(),
    ]
    sizes = [(0, b - a) for a, b in pairwise(ends)]
    members = range(wires.num_ranks)

    def offsets(chunk: int) -> tuple[int, int]:
        return sizes[chunk % path.slices]

    def gather(group: Group, own: Tensor) -> Tensor:
        whole = own.new_empty(len(members), elements)
        whole[group.rank] = own
        under_way = Gather(group, members, there, own.tensor_split(path.slices), offsets)
        for arrivals in under_way.arrivals():
            for arrival in arrivals:
                part = arrival.chunk % path.slices
                whole[arrival.chunk // path.slices, ends[part] : ends[part + 1]] = arrival.data
        under_way.finish()
        return whole.view(-1)

    def reduce(group: Group, own: Tensor) -> Tensor:
        gives = dict.fromkeys(range(path.num_chunks), (0, 1))
        under_way = Reduce(group, members, back, gives, offsets, own.dtype)
        chunks = [part for piece in own.clone().view(len(members), -1) for part in piece.tensor_split(path.slices)]
        for chunk, part in enumerate(chunks):
            under_way.feed(chunk, part)
        own_parts = under_way.result()
        return torch.cat([own_parts[group.rank * path.slices + part] for part in range(path.slices)])

    runs: dict[str, Run] = {
        "all_gather": gather,
        "reduce_scatter": reduce,
        "all_reduce": lambda group, own: gather(group, reduce(group, own)),
    }
    return runs[collective]


def scan_blocks(method: str, wires: Wires, elements: int) -> int:
    """Blocks of ``chain`` (the best number) or ``chain-K``."""
    if method != "chain":
        return int(method.removeprefix("chain-"))
    slowest = min(wires.link(a, b).gbps for a, b in pairwise(range(wires.num_ranks)))
    return best_blocks(wires.num_ranks, elements * 4, slowest)


def _all_scan(group: Group, own: Tensor, blocks: int) -> Tensor:
    """Each member's state is its own and the one before, decayed: passed on block by block."""
    before, after = group.rank - 1, group.rank + 1
    parts, sent = list(own.clone().tensor_split(blocks)), []
    coming = [torch.empty_like(part) for part in parts] if before >= 0 else []
    receives = [group.irecv(part, before, block) for block, part in enumerate(coming)]
    for block, part in enumerate(parts):
        if receives:
            group.wait(receives[block])
            part.add_(coming[block], alpha=DECAY)
        if after < group.size:
            sent.append(group.isend(part, after, block))
    group.wait_all(sent)
    return torch.cat(parts)


def _all_to_all(group: Group, own: Tensor) -> Tensor:
    whole, pieces = torch.empty_like(own), own.view(group.size, -1)
    into = whole.view(group.size, -1)
    into[group.rank] = pieces[group.rank]
    peers = [(group.rank + k) % group.size for k in range(1, group.size)]
    exchange(group, [(p, pieces[p], 0) for p in peers], [(p, into[p], 0) for p in reversed(peers)])
    return whole


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


_NATIVE: dict[str, Run] = {
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
    runs = {method: run_of(collective, method, wires, elements) for method in methods}
    spans: dict[str, list[Span]] = {method: [] for method in methods}
    errors = dict.fromkeys(methods, 0.0)
    for _ in range(repeats):
        for method, run in runs.items():
            start = agreed_start(group)
            found = run(group, own)
            spans[method].append((start, time.perf_counter()))
            errors[method] = max(errors[method], float((found - right).abs().max()))
    comm.close()
    return {method: (spans[method], errors[method]) for method in methods}
