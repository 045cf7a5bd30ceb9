"""Every link, in both directions: the α-β model (Hockney 1994) from a small and a large message.

No two clocks agree to a microsecond, so one rank measures: it sends the large message and waits for a small answer,
whose half of a small round trip is taken off. Few ranks take turns, so that no measurement disturbs another; with more
of them, as many disjoint pairs as there are measure at once (the rounds of a round-robin tournament), and links that
share an adapter show what they have together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import torch

from trainsys.comm.group import Group

ALONE = 8  # ranks up to which pairs take turns
_SMALL, _LARGE = 64, (1 << 20, 64 << 20)  # bytes
_LONG_S = 0.03  # a large message that takes this long drowns its latency
_TIMES, _TRIPS = 3, 60


@dataclass(frozen=True)
class Direction:
    """From this rank to `peer`."""

    peer: int
    gbps: float
    latency_s: float


def rounds(ranks: list[int]) -> Iterator[list[tuple[int, int]]]:
    """All pairs, in rounds whose pairs can measure at once."""
    if len(ranks) <= ALONE:
        for i, a in enumerate(ranks):
            for b in ranks[i + 1 :]:
                yield [(a, b)]
        return
    circle: list[int | None] = [*ranks, *([None] if len(ranks) % 2 else [])]
    half = len(circle) // 2
    for _ in range(len(circle) - 1):
        pairs = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(a, b) for a, b in pairs if a is not None and b is not None]
        circle.insert(1, circle.pop())


def measure_links(group: Group, device: torch.device) -> list[Direction]:
    """The links from this rank to every other; all ranks of `group` call it together."""
    found = []
    for pairs in rounds(sorted(group.ranks)):
        for a, b in pairs:
            if group.rank in (a, b):
                for source, target in ((a, b), (b, a)):
                    if group.rank == source:
                        found.append(_measured(group, target, device))
                    else:
                        _answer(group, source, device)
        group.backend.barrier().wait()
    return sorted(found, key=lambda d: d.peer)


def _measured(group: Group, peer: int, device: torch.device) -> Direction:
    small = torch.ones(_SMALL, dtype=torch.uint8, device=device)
    trip = min(_trip_s(group, peer, small, small) for _ in range(_TRIPS))
    size = _LARGE[0]
    while True:
        large = torch.ones(size, dtype=torch.uint8, device=device)
        _tell(group, peer, size, device)
        seconds = min(_trip_s(group, peer, large, small) for _ in range(_TIMES))
        if seconds > _LONG_S or size >= _LARGE[1]:
            break
        size *= 8
    _tell(group, peer, 0, device)
    return Direction(peer, (size - _SMALL) / max(seconds - trip, 1e-9) / 1e9, trip / 2)


def _answer(group: Group, peer: int, device: torch.device) -> None:
    """The other end of `_measured`."""
    small = torch.ones(_SMALL, dtype=torch.uint8, device=device)
    for _ in range(_TRIPS):
        _echo(group, peer, small, small)
    while size := _told(group, peer, device):
        large = torch.empty(size, dtype=torch.uint8, device=device)
        for _ in range(_TIMES):
            _echo(group, peer, large, small)


def _trip_s(group: Group, peer: int, data: torch.Tensor, answer: torch.Tensor) -> float:
    back = torch.empty_like(answer)
    start = perf_counter()
    works = [group.irecv(back, peer, 1), group.isend(data, peer, 0)]
    group.wait_all(works)
    if back.is_cuda:
        torch.cuda.synchronize()
    return perf_counter() - start


def _echo(group: Group, peer: int, into: torch.Tensor, answer: torch.Tensor) -> None:
    group.wait_all([group.irecv(torch.empty_like(into), peer, 0)])
    group.wait_all([group.isend(answer, peer, 1)])


def _tell(group: Group, peer: int, number: int, device: torch.device) -> None:
    group.wait_all([group.isend(torch.tensor([number], device=device), peer, 2)])


def _told(group: Group, peer: int, device: torch.device) -> int:
    number = torch.empty(1, dtype=torch.int64, device=device)
    group.wait_all([group.irecv(number, peer, 2)])
    return int(number.item())
