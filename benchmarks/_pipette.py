"""The baseline of `bench placement`: Pipette's annealing of whole servers (arXiv:2405.18093, section 4)."""

from __future__ import annotations

import math
import random
from time import perf_counter
from typing import Any

import numpy as np

from trainsys.planner.placement import Traffic, seconds_of


def anneal_servers(traffic: Traffic, inverse: Any, per_server: int, seconds: float, seed: int = 0) -> float:
    """Best seconds of communication found: a random order of servers, five moves, temperature 1 falling by 0.999.

    A worse order is taken with probability exp(-d/T), d being the increase over the power of ten above it.
    """
    dice = random.Random(seed)
    servers = list(range(len(inverse) // per_server))
    dice.shuffle(servers)

    def cost(order: list[int]) -> float:
        slots = (np.array(order)[:, None] * per_server + np.arange(per_server)).reshape(-1)[: traffic.teams]
        return float(seconds_of(traffic, inverse, slots.reshape(1, traffic.pp, traffic.dp))[0])

    now = best = cost(servers)
    temperature, end = 1.0, perf_counter() + seconds
    while perf_counter() < end:
        tried = _move(servers, dice)
        found = cost(tried)
        worse = found - now
        if worse <= 0 or dice.random() < math.exp(-(worse / 10 ** math.ceil(math.log10(worse))) / temperature):
            servers, now = tried, found
            best = min(best, now)
        temperature = max(temperature * 0.999, 1e-12)
    return best


def _move(order: list[int], dice: random.Random) -> list[int]:
    """Reverse a segment, insert, swap, move a segment, or move it reversed."""
    i, j = sorted(dice.sample(range(len(order) + 1), 2)) if len(order) > 1 else (0, 1)
    kind = dice.randrange(5)
    if kind == 0:
        return order[:i] + order[i:j][::-1] + order[j:]
    if kind == 2:
        tried = order.copy()
        a, b = dice.randrange(len(order)), dice.randrange(len(order))
        tried[a], tried[b] = tried[b], tried[a]
        return tried
    segment = order[i : i + 1] if kind == 1 else order[i:j]
    rest = order[:i] + order[i + len(segment) :]
    at = dice.randrange(len(rest) + 1)
    return rest[:at] + (segment[::-1] if kind == 4 else segment) + rest[at:]
