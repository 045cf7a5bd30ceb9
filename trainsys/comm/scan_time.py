"""Seconds of handing a state along a line of ranks: what each method costs on given wires, and which is best.

Each rank wants what the ones before it make of an empty state, and in the backward what the ones after it do. Imports
no torch.

    P = ranks, S = bytes of a state, α = seconds of a message, B = bytes per second of a link
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from trainsys.comm.wires import Edge, Wires

MOST_BLOCKS = 64  # of an all-scan, unless told
MESSAGE_S = 1e-4  # what a message takes at least, of software; measured between processes of one machine


def all_scan_s(size: int, state_bytes: float, gbps: float, latency_s: float, blocks: int) -> float:
    """ZeCO's pipeline (arXiv:2507.01004, §3): (P - 2 + K) steps of one of K blocks; LASP's chain is K = 1.

    The first rank's blocks leave one after another, and each of the P - 2 ranks between adds a step.
    """
    if size < 2:
        return 0.0
    return (size - 2 + blocks) * (latency_s + state_bytes / (blocks * gbps * 1e9))


def all_gather_s(size: int, state_bytes: float, gbps: float, latency_s: float) -> float:
    """LASP-2's all-gather (arXiv:2502.07563) where a rank has one port: P - 1 states leave and P - 1 arrive."""
    return (size - 1) * (latency_s + state_bytes / (gbps * 1e9))


def bound_s(size: int, state_bytes: float, gbps: float) -> float:
    """No method is faster: one state has to arrive at each rank but the first."""
    return state_bytes / (gbps * 1e9) if size > 1 else 0.0


def best_blocks(size: int, state_bytes: float, gbps: float, latency_s: float, most: int) -> int:
    """K = √((P - 2) · S / (α · B)), at which `all_scan_s` is least, within 1 and `most`."""
    if size < 3:
        return 1
    if latency_s <= 0:
        return max(1, most)
    best = sqrt((size - 2) * state_bytes / (latency_s * gbps * 1e9))
    return max(1, min(most, round(best)))


@dataclass(frozen=True)
class Choice:
    """A method of `parallel.sequence.linear` and what it takes. `blocks`: of All-Scan, else 1."""

    method: str
    blocks: int
    seconds: float


def chain(wires: Wires, state_bytes: float, most_blocks: int) -> Choice:
    """All-Scan among all that `wires` connect, in the best number of blocks, the slower way of forward and backward.

    Args:
        most_blocks: into which a state can be cut.
    """
    size = wires.num_ranks
    if size < 2:
        return Choice("all_scan", 1, 0.0)
    ways = _both([(rank, rank + 1) for rank in range(size - 1)])
    gbps = state_bytes / max(_busiest_s(wires, way, state_bytes) for way in ways) / 1e9
    alpha = _message_s(wires, ways)
    blocks = best_blocks(size, state_bytes, gbps, alpha, most_blocks)
    return Choice("all_scan", blocks, all_scan_s(size, state_bytes, gbps, alpha, blocks))


def direct(wires: Wires, state_bytes: float, transition_bytes: float) -> Choice:
    """Everybody's state and transition to all later ranks at once, the slower way of forward and backward."""
    size = wires.num_ranks
    if size < 2:
        return Choice("lasp2_direct", 1, 0.0)
    ways = _both([(a, b) for a in range(size) for b in range(a + 1, size)])
    busiest_s = max(_busiest_s(wires, way, state_bytes + transition_bytes) for way in ways)
    return Choice("lasp2_direct", 1, _message_s(wires, ways) + busiest_s)


def choose(wires: Wires, state_bytes: float, transition_bytes: float, most_blocks: int) -> Choice:
    """The sooner of `chain` and `direct`, which has each state where it is wanted in one step and wins where ranks have
    links enough. On a tie the one with less traffic."""
    both = (chain(wires, state_bytes, most_blocks), direct(wires, state_bytes, transition_bytes))
    return min(both, key=lambda choice: choice.seconds)


def _both(pairs: list[Edge]) -> tuple[list[Edge], list[Edge]]:
    return pairs, [(b, a) for a, b in pairs]


def _message_s(wires: Wires, ways: Iterable[list[Edge]]) -> float:
    return max(MESSAGE_S, *(wires.link(*pair).latency_s for way in ways for pair in way))


def _busiest_s(wires: Wires, pairs: Iterable[Edge], size: float) -> float:
    """Seconds that the busiest edge takes for a message of `size` bytes between each of `pairs`."""
    messages = Counter(edge for pair in pairs for edge in wires.routes[pair])
    return max(count * size / (wires.links[edge].gbps * 1e9) for edge, count in messages.items())
