"""Portions: a transition cut into parts, each the same share of every tensor.

When a portion has arrived, its source can be given up. For that to bound memory on *every* rank, what a rank has given
up must keep pace with what it has received. Runs of whole tensors do not do that: where each rank held a quarter of
every layer and will hold a quarter of the layers, the first rank would receive all of its new state while three
quarters of its old one still stand. So a portion takes from every tensor the same fraction of its rows, and of the rows
of every shard alike; after k of n portions a rank holds about (n-k)/n of its old storage and k/n of its new one.

The rows of a shard are cut into units of about a chunk, and unit u of C belongs to portion ⌊n · frac(u/C + t·φ)⌋, where
φ, the golden ratio's fraction, spreads the tensors t: small ones over the portions, and the first units of large ones,
so that roundings do not add up. All in integers, so that every rank computes the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import lcm, prod

from trainsys.space.box import Box
from trainsys.space.index import Index
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Move, Transition

PORTION_SHARE = 0.25  # of the staging budget: what a rank receives and copies in one portion
_ONE = 1 << 32
_GOLDEN = 0x9E3779B9  # fraction of the golden ratio, in units of 2⁻³²


@dataclass(frozen=True)
class Held:
    """Where a range of portions stands: ``[first, stop)`` under `layout`, as staged in `epoch`."""

    epoch: int
    layout: Layout
    first: int
    stop: int


def advanced(held: Sequence[Held], target: Held) -> tuple[Held, ...]:
    """What is held where, once the portions of `target`, which begin at 0, have been given up elsewhere."""
    if not target.stop:
        return tuple(held)
    return target, *(replace(h, first=max(h.first, target.stop)) for h in held if h.stop > target.stop)


def portions_within(space: Space, layouts: Iterable[Layout], staging_bytes: int, itemsize: int) -> int:
    """Least number of portions of which a rank of any of `layouts` gets its share of the budget, roundings apart."""
    indices = [Index(space, layout, lambda r: 0) for layout in layouts]
    largest = max(index.numel(rank) for index in indices for rank in index.layout.ranks)
    return max(1, -(-len(SLOTS) * itemsize * largest // int(staging_bytes * PORTION_SHARE)))


class Portions:
    """The cut of a space into `count` portions.

    Args:
        tps: tensor-parallel degrees of the layouts concerned: a portion takes alike from the shards of each.
        chunk: elements of a unit, as far as rows allow; what lies together in storage stays together.
    """

    def __init__(self, space: Space, count: int, tps: Collection[int], chunk: int) -> None:
        self.space, self.count, self.tps, self.chunk = space, count, frozenset(tps), chunk
        self._units: dict[int, tuple[int, int, int]] = {}

    def of_rows(self, tensor: int, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(portion, first, stop) of the runs of rows ``[first, stop)``, in order.

        Rows are those of dim 0, counted in the whole tensor or in any of its shards: it makes no difference.
        """
        block, unit, units = self._cut(tensor)
        offset = tensor * _GOLDEN % _ONE
        while first < stop:
            base, inner = first - first % block, first % block
            turns, at = divmod(inner // unit * _ONE // units + offset, _ONE)
            portion = at * self.count // _ONE
            border = -(-(portion + 1) * _ONE // self.count) + turns * _ONE - offset  # where the next portion begins
            last = min(base + min(block, -(-border * units // _ONE) * unit), stop)
            yield portion, first, last
            first = last

    def of_piece(self, tensor: int, tp: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(portion, start, stop) of the runs of elements ``[start, stop)`` of a shard under `tp`, row-major."""
        yield from self._of_run(tensor, self.space.tensors[tensor].shards(tp), start, stop)

    def _of_run(self, tensor: int, shards: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The same of one of so many shards."""
        logical = self.space.tensors[tensor]
        row = prod(logical.shape[1:]) // (1 if logical.split in (None, 0) else shards)
        for portion, first, last in self.of_rows(tensor, start // row, -(-stop // row)):
            yield portion, max(start, first * row), min(stop, last * row)

    def of_transition(self, share: Transition) -> list[Transition]:
        """One rank's share, portion by portion."""
        local, sends, receives = (self._of_moves(m) for m in (share.local, share.sends, share.receives))
        return [Transition(share.rank, *map(tuple, parts)) for parts in zip(local, sends, receives, strict=True)]

    def _of_moves(self, moves: Sequence[Move]) -> list[list[Move]]:
        parts: list[list[Move]] = [[] for _ in range(self.count)]
        for m in moves:
            if m.shards:
                for portion, first, last in self._of_run(m.tensor, m.shards, m.box.start[0], m.box.stop[0]):
                    part = Box((first,), (last,))
                    parts[portion].append(replace(m, box=part))
                continue
            if not m.box.start:
                parts[next(self.of_rows(m.tensor, 0, 1))[0]].append(m)
                continue
            start, stop = m.box.start[1:], m.box.stop[1:]
            for portion, first, last in self.of_rows(m.tensor, m.box.start[0], m.box.stop[0]):
                part = Box((first, *start), (last, *stop))
                parts[portion].append(Move(m.tensor, part, m.src, m.dst, m.src_at, m.dst_at))
        return parts

    def _cut(self, tensor: int) -> tuple[int, int, int]:
        """Rows of the finest shard, rows of a unit, units."""
        if tensor not in self._units:
            logical = self.space.tensors[tensor]
            shards = lcm(*(logical.shards(tp) for tp in self.tps))
            rows = logical.shape[0] if logical.shape else 1
            block = rows // shards if logical.split == 0 else rows
            unit = max(1, self.chunk * shards * block // logical.numel)
            self._units[tensor] = block, unit, -(-block // unit)
        return self._units[tensor]
