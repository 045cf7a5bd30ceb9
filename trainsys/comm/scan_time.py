"""Seconds of handing a state along a line of ranks: what each method costs, and into how many blocks to cut it.

Each rank wants what the ones before it make of an empty state. Imports no torch.

    P = ranks, S = bytes of a state, α = seconds of a message, B = bytes per second of a link
"""

from __future__ import annotations

from math import sqrt


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
    if size < 3 or latency_s <= 0:
        return 1 if size < 3 else most
    best = sqrt((size - 2) * state_bytes / (latency_s * gbps * 1e9))
    return max(1, min(most, round(best)))
