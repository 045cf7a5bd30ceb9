"""Rank bodies for laboratories of wires."""

from __future__ import annotations

import time
from typing import Any

import torch

from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange

Pairs = tuple[tuple[int, int], ...]


def transfers(
    rank: int, world_size: int, store: Any, pairs: Pairs, num_bytes: int, repeat: int
) -> list[tuple[float, float]]:
    """Start and end of each round, in which every (source, destination) carries `num_bytes`, after a first one that is
    not timed; what arrives is what was sent."""
    comm, members, spans = Communicator(store, rank), tuple(range(world_size)), []
    comm.reconfigure(0, [members])
    group, data = comm.group(members), torch.full((num_bytes,), rank, dtype=torch.uint8)
    for _ in range(repeat + 1):
        group.backend.barrier().wait()
        start = time.perf_counter()
        into = {a: torch.empty_like(data) for a, b in pairs if b == rank}
        exchange(group, [(b, data, 0) for a, b in pairs if a == rank], [(a, into[a], 0) for a in into])
        spans.append((start, time.perf_counter()))
        assert all(bool((found == a).all()) for a, found in into.items())
    comm.close()
    return spans[1:]


def native(rank: int, world_size: int, store: Any, num_bytes: int) -> tuple[float, float]:
    """Start and end of the backend's own all-reduce, after a small one."""
    comm, members = Communicator(store, rank), tuple(range(world_size))
    comm.reconfigure(0, [members])
    group = comm.group(members)
    group.all_reduce(torch.ones(1))
    data = torch.full((num_bytes // 4,), float(rank))
    group.backend.barrier().wait()
    start = time.perf_counter()
    group.all_reduce(data)
    end = time.perf_counter()
    assert bool((data == sum(members)).all())
    comm.close()
    return start, end


def fails(rank: int, world_size: int, store: Any) -> None:
    raise ArithmeticError("on purpose")


def best_s(spans: list[list[tuple[float, float]]]) -> float:
    """The shortest round, from its first start to its last end."""
    return min(max(end for _, end in one) - min(start for start, _ in one) for one in zip(*spans, strict=True))


def owned(rank: int, world_size: int, store: Any) -> int:
    """Connections that a group of all calls its own."""
    comm = Communicator(store, rank, timeout_s=10.0)
    comm.reconfigure(0, [tuple(range(world_size))])
    count = comm.groups[0].num_sockets
    comm.groups[0].backend.barrier().wait()  # who leaves at once takes connections from those who still connect
    comm.close()
    return count
