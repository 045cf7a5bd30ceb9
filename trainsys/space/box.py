"""Boxes: half-open N-d intervals of one logical tensor. They describe every layout exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import add, lt, sub


@dataclass(frozen=True, order=True)
class Box:
    """The coordinates ``start[d] <= x[d] < stop[d]`` of an N-d tensor."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.start) == len(self.stop)

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        return Box((0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(sub, self.stop, self.start))

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """The common box, or None when it is empty."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        return Box(start, stop) if all(map(lt, start, stop)) else None

    def shift(self, by: Sequence[int]) -> Box:
        return Box(tuple(map(add, self.start, by)), tuple(map(add, self.stop, by)))

    def within(self, outer: Box) -> tuple[slice, ...]:
        """Index of this box inside an array that holds exactly `outer`."""
        return tuple(slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Split the row-major interval ``[start, stop)`` of an array of `shape` into at most ``2·ndim - 1`` boxes.

    The boxes come in memory order, and each is contiguous in memory: a run of one array therefore maps to boxes whose
    offsets are their running sizes.
    """
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [Box((start,), (stop,))] if shape else [Box((), ())]
    row = prod(shape[1:])
    first, head = divmod(start, row)
    last, tail = divmod(stop, row)
    if first == last:
        return [_prefix(first, box) for box in flat_boxes(shape[1:], head, tail)]
    boxes = []
    if head:
        boxes += [_prefix(first, box) for box in flat_boxes(shape[1:], head, row)]
        first += 1
    if first < last:
        boxes.append(Box((first,) + (0,) * (len(shape) - 1), (last, *shape[1:])))
    if tail:
        boxes += [_prefix(last, box) for box in flat_boxes(shape[1:], 0, tail)]
    return boxes


def cut(box: Box, limit: int) -> list[Box]:
    """Split a box into slabs of at most `limit` elements, in row-major order; a box within the limit stays whole."""
    if box.numel <= limit:
        return [box]
    first, last = box.start[0], box.stop[0]
    row = box.numel // (last - first)
    if row <= limit:
        step = limit // row
        starts = range(first, last, step)
        return [Box((a, *box.start[1:]), (min(a + step, last), *box.stop[1:])) for a in starts]
    inner = cut(Box(box.start[1:], box.stop[1:]), limit)
    return [_prefix(a, part) for a in range(first, last) for part in inner]


def _prefix(row: int, box: Box) -> Box:
    return Box((row, *box.start), (row + 1, *box.stop))
