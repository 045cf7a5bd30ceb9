"""The least of many by a dear measure, which few have to be asked: bounds rule out the others."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import TypeVar

Item = TypeVar("Item")


def ascending(items: Sequence[Item], measures: Sequence[Callable[[Item], float]]) -> Iterator[Item]:
    """`items` by the last of `measures`, the first of equals first; an infinite one leaves its item out.

    Each measure must be no less than the one before it, and is asked only while the item may be the next: best-first
    search (Hart, Nilsson and Raphael 1968) without edges.
    """
    last = len(measures) - 1
    heap = [(measures[0](item), last == 0, place, 0) for place, item in enumerate(items)]
    heapq.heapify(heap)
    while heap:
        value, final, place, level = heapq.heappop(heap)
        if value == inf:
            return
        if final:
            yield items[place]
        else:
            heapq.heappush(heap, (measures[level + 1](items[place]), level + 1 == last, place, level + 1))
