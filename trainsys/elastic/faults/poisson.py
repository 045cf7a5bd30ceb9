"""Faults as a Poisson process: the time to the next one is drawn, and so is who it hits among those who live then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Stroke:
    """Something that happens to a rank or a node at a time.

    Attributes:
        time_s: since the driver began.
        event: ``remove`` or ``add``.
        node: name of the node; empty: whichever.
        draw: in [0, 1): which of the living ranks is the victim, where no node is named.
    """

    time_s: float
    event: str = "remove"
    node: str = ""
    draw: float = 0.0


def poisson(mtbf_s: float, seed: int) -> Iterator[Stroke]:
    """Without an end: exponential gaps with the mean `mtbf_s`, the same for a seed."""
    rng, now = random.Random(f"poisson/{seed}"), 0.0
    while True:
        now += rng.expovariate(1 / mtbf_s)
        yield Stroke(now, draw=rng.random())
