"""What moves where when a sequence that is cut in one way is to be cut in another: by runs of rows, and in bytes."""

from __future__ import annotations

from functools import lru_cache
from math import lcm
from typing import NamedTuple

from trainsys.sequence.layouts import Layout, Positions


class Strip(NamedTuple):
    """Evenly spaced rows of one member that are evenly spaced rows of another."""

    here: slice
    there: slice
    length: int


@lru_cache(maxsize=1 << 12)
def strips(a: Positions, b: Positions) -> tuple[Strip, ...]:
    """What of a member's rows under one layout are a member's rows under another, in the order of the latter."""
    found, row_b = [], 0
    for to in b:
        row_a = 0
        for own in a:
            both = _common(own, to)
            if both:
                here, there = (
                    slice(row + run.index(both[0]), row + run.index(both[-1]) + 1, both.step // run.step)
                    for row, run in ((row_a, own), (row_b, to))
                )
                found.append(Strip(here, there, len(both)))
            row_a += len(own)
        row_b += len(to)
    return tuple(found)


def _common(a: range, b: range) -> range:
    """The numbers of two rising ranges that are in both."""
    step = lcm(a.step, b.step)
    inside = range(a.start + -(-max(0, b.start - a.start) // a.step) * a.step, min(a.stop, b.stop), a.step)
    first = next((number for number in inside[: step // a.step] if number in b), None)
    return range(0) if first is None else range(first, inside.stop, step)


def moves(a: Layout, b: Layout, bytes_per_row: int) -> list[list[int]]:
    """Bytes from each member to each other; what stays where it is does not count."""
    return [
        [bytes_per_row * sum(strip.length for strip in strips(own, to)) * (i != j) for j, to in enumerate(b)]
        for i, own in enumerate(a)
    ]
