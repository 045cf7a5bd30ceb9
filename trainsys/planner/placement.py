"""Which team of a layout goes where, on measured links: fewer seconds of communication than in plain order, never more.

A *slot* holds one tp team; several may share a node. Pipette (Yoo et al. 2024, arXiv:2405.18093) anneals whole servers;
here every slot moves by itself, and the rings of data-parallel groups have an order of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_CHAINS = 64  # anneal side by side, so that one matrix expression costs a move of each
_HOT, _COLD = 0.05, 1e-4  # temperatures, as shares of the plain order's seconds


@dataclass(frozen=True)
class Traffic:
    """What a layout of pp stages with dp replicas sends in one step.

    Attributes:
        message_bytes: between two neighbouring teams, one way, per microbatch.
        waves: how often a message stands on the critical path: microbatches of a replica over stages (Pipette, 3.2).
        gradient_bytes: that each team reduces with the replicas of its stage.
    """

    pp: int
    dp: int
    message_bytes: float
    waves: int
    gradient_bytes: float

    @property
    def teams(self) -> int:
        return self.pp * self.dp


@dataclass(frozen=True)
class Placement:
    """Where the teams go.

    Attributes:
        slots: ``slots[stage][replica]``.
        rings: ``rings[stage]``: replicas in the order of their ring.
        step_s, plain_s: predicted seconds of communication per step, here and in plain order.
    """

    slots: tuple[tuple[int, ...], ...]
    rings: tuple[tuple[int, ...], ...]
    step_s: float
    plain_s: float


def place(traffic: Traffic, gbps: Array, seconds: float = 2.0, seed: int = 0) -> Placement:
    """The best placement found within `seconds`; at least as good as the plain order.

    Args:
        gbps: ``[slot, slot]``: bandwidth from one to the other, GB/s; the diagonal does not matter.

    Raises:
        ValueError: fewer slots than teams, a link without bandwidth, or no time.
    """
    if not seconds > 0:
        raise ValueError(f"seconds={seconds:g} must be positive")
    inverse = _inverse(traffic, gbps)
    grid = (traffic.pp, traffic.dp)
    plain = np.arange(traffic.teams).reshape(grid)
    plain_s = float(seconds_of(traffic, inverse, plain[None])[0])
    best = _anneal(traffic, inverse, seconds, np.random.default_rng(seed)) if traffic.teams > 1 else plain
    rings = [_ring(inverse, row) for row in best]
    step_s = _with_rings(traffic, inverse, best, rings)
    # annealing begins with the plain order and a ring is only ever changed for a better one: worse by rounding alone
    return Placement(tuple(map(tuple, best.tolist())), tuple(map(tuple, rings)), min(step_s, plain_s), plain_s)


def seconds_of(traffic: Traffic, inverse: Array, grids: Array) -> Array:
    """Seconds of communication of many placements at once, rings in the order of the replicas.

    Args:
        inverse: ``[slot, slot]``: seconds per byte.
        grids: ``[n, pp, dp]`` of slots.
    """
    total = np.zeros(len(grids))
    if traffic.pp > 1:
        here, there = grids[:, :-1], grids[:, 1:]
        way = (inverse[here, there] + inverse[there, here]).sum(1)
        total += traffic.waves * traffic.message_bytes * way.max(1)
    if traffic.dp > 1:
        slowest = inverse[grids, np.roll(grids, -1, 2)].max((1, 2))
        total += _ring_bytes(traffic) * slowest
    return total


def _ring_bytes(traffic: Traffic) -> float:
    """Past each member of a ring all-reduce (Patarasuk and Yuan 2009)."""
    return 2 * (traffic.dp - 1) / traffic.dp * traffic.gradient_bytes


def _inverse(traffic: Traffic, gbps: Array) -> Array:
    slots = len(gbps)
    if gbps.shape != (slots, slots):
        raise ValueError(f"the matrix of links is {gbps.shape[0]} x {gbps.shape[1]}; it must be square")
    if slots < traffic.teams:
        raise ValueError(
            f"pp·dp={traffic.pp}·{traffic.dp} teams but the matrix has {slots} slots; set parallel.dp lower"
        )
    off = ~np.eye(slots, dtype=bool)
    if not (gbps[off] > 0).all():
        a, b = np.argwhere(~(gbps > 0) & off)[0]
        raise ValueError(f"the link from {a} to {b} has {gbps[a, b]:g} GB/s; it must be positive")
    return np.where(off, 1e-9 / np.where(off, gbps, 1.0), 0.0)


def _anneal(traffic: Traffic, inverse: Array, seconds: float, random: np.random.Generator) -> Array:
    """Chains of simulated annealing from the plain order; the best grid that any of them saw."""
    slots, teams, shape = len(inverse), traffic.teams, (-1, traffic.pp, traffic.dp)
    chains = np.tile(np.arange(slots), (_CHAINS, 1))
    rows = np.arange(_CHAINS)
    cost = seconds_of(traffic, inverse, chains[:, :teams].reshape(shape))
    best, best_s, scale = chains[0, :teams].copy(), float(cost[0]), float(cost[0])
    begin = perf_counter()
    while (spent := (perf_counter() - begin) / seconds) < 1:
        temperature = scale * _HOT * (_COLD / _HOT) ** spent
        tried = _moved(chains, rows, teams, random)
        tried_s = seconds_of(traffic, inverse, tried[:, :teams].reshape(shape))
        with np.errstate(over="ignore"):
            accepted = random.random(_CHAINS) < np.exp(np.minimum(0.0, (cost - tried_s) / temperature))
        chains[accepted], cost[accepted] = tried[accepted], tried_s[accepted]
        least = int(cost.argmin())
        if cost[least] < best_s:
            best, best_s = chains[least, :teams].copy(), float(cost[least])
    return best.reshape(shape[1:])


def _moved(chains: Array, rows: Array, teams: int, random: np.random.Generator) -> Array:
    """Every chain after one move: two slots change places, or a run of them is reversed or rotated."""
    slots = chains.shape[1]
    a, b = random.integers(teams, size=len(rows)), random.integers(slots, size=len(rows))
    kind = random.random()
    if kind < 0.6:
        moved = chains.copy()
        moved[rows, a], moved[rows, b] = chains[rows, b], chains[rows, a]
        return moved
    first, last = np.minimum(a, b)[:, None], np.maximum(a, b)[:, None]
    at = np.arange(slots)[None]
    inside = (at >= first) & (at <= last)
    order = np.where(inside, first + last - at if kind < 0.8 else first + (at - first + 1) % (last - first + 1), at)
    return np.take_along_axis(chains, order, 1)


def _ring(inverse: Array, slots: Array) -> list[int]:
    """An order of `slots` around a ring whose slowest link is as fast as two-edge exchanges can make it."""
    order = list(range(len(slots)))
    cost = _slowest(inverse, slots, order)
    improved = len(order) > 3
    while improved:
        improved = False
        for i in range(1, len(order) - 1):
            for j in range(i + 1, len(order)):
                tried = order[:i] + order[i : j + 1][::-1] + order[j + 1 :]
                if (found := _slowest(inverse, slots, tried)) < cost:
                    order, cost, improved = tried, found, True
    return order


def _slowest(inverse: Array, slots: Array, order: list[int]) -> float:
    ring = slots[order]
    return float(inverse[ring, np.roll(ring, -1)].max())


def _with_rings(traffic: Traffic, inverse: Array, grid: Array, rings: list[list[int]]) -> float:
    """Seconds with the stages' own rings in place of the replicas' order."""
    messages = float(seconds_of(traffic, inverse, grid[None])[0])
    if traffic.dp == 1:
        return messages
    plain = max(_slowest(inverse, row, list(range(traffic.dp))) for row in grid)
    own = max(_slowest(inverse, row, ring) for row, ring in zip(grid, rings, strict=True))
    return messages + _ring_bytes(traffic) * (own - plain)
