"""Strips: the moves between two ranks as few, large copies, and which of them need no staging.

A move names a box, and a box is a set of equal rows in either storage. Neighbouring moves often continue one another:
chunks of a shard lie end to end, and what a chunk border cut in two is one row again. A strip is what remains after all
such neighbours are joined. The order of the elements is that of the moves, so both ends agree on it without talking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from trainsys.space.transition import Move


class Strip(NamedTuple):
    """`rows` runs of `row` elements; run i begins at ``src + i·src_step`` there and at ``dst + i·dst_step`` here."""

    rows: int
    row: int
    src: int
    src_step: int
    dst: int
    dst_step: int

    @property
    def numel(self) -> int:
        return self.rows * self.row

    @property
    def src_whole(self) -> bool:
        """One contiguous run of the source's storage."""
        return self.rows == 1 or self.src_step == self.row

    @property
    def dst_whole(self) -> bool:
        """One contiguous run of the destination's storage."""
        return self.rows == 1 or self.dst_step == self.row


@dataclass(frozen=True)
class Cut:
    """One part of a round: `direct` strips travel in messages of their own, the `packed` rest shares one."""

    direct: tuple[Strip, ...]
    packed: tuple[Strip, ...]

    def messages(self, slots: Sequence[str]) -> Iterator[tuple[Sequence[Strip], Sequence[str]]]:
        """Strips and slots of each message, in the order of both ends."""
        for strip in self.direct:
            for slot in slots:
                yield (strip,), (slot,)
        if self.packed:
            yield self.packed, slots

    def staged(self, sending: bool, num_slots: int) -> int:
        """Elements that one end must stage: what does not lie there in one run."""
        scattered = [s for s in self.direct if not (s.src_whole if sending else s.dst_whole)]
        return num_slots * sum(s.numel for s in (*scattered, *self.packed))


def cut(moves: Sequence[Move], least: int) -> Cut:
    """Decide what is packed.

    Args:
        moves: one part of a round.
        least: elements from which a strip is worth a message of its own, if that saves a copy at either end.
    """
    direct: list[Strip] = []
    packed: list[Strip] = []
    for strip in strips(moves):
        own = strip.numel >= least and (strip.src_whole or strip.dst_whole)
        (direct if own else packed).append(strip)
    return Cut(tuple(direct), tuple(packed))


def strips(moves: Sequence[Move]) -> list[Strip]:
    """The moves, joined where one continues the other."""
    joined: list[Strip] = []
    for move in moves:
        for strip in _strips_of(move):
            whole: Strip | None = strip
            while joined and whole is not None:
                strip = whole
                whole = _join(joined[-1], strip)
                if whole is not None:
                    joined.pop()
            joined.append(strip if whole is None else whole)
    return joined


def _strips_of(move: Move) -> Iterator[Strip]:
    """One strip for a box of up to 2 strided dims, else one per index of the outer dims."""
    src, src_stride, dst, dst_stride = move.src_at.offset, 1, move.dst_at.offset, 1
    dims: list[tuple[int, int, int]] = [(1, 1, 1)]  # size, source stride, destination stride; innermost first
    there, here = move.src_at.box, move.dst_at.box
    for d in range(len(move.box.start) - 1, -1, -1):
        start = move.box.start[d]
        n = move.box.stop[d] - start
        src += (start - there.start[d]) * src_stride
        dst += (start - here.start[d]) * dst_stride
        size, a, b = dims[-1]
        if n > 1 and size * a == src_stride and size * b == dst_stride:
            dims[-1] = (size * n, a, b)
        elif n > 1:
            dims.append((n, src_stride, dst_stride))
        src_stride *= there.stop[d] - there.start[d]
        dst_stride *= here.stop[d] - here.start[d]
    row = dims[0][0]
    rows, src_step, dst_step = dims[1] if len(dims) > 1 else (1, 0, 0)
    if len(dims) <= 2:
        yield Strip(rows, row, src, src_step, dst, dst_step)
        return
    for at in product(*(range(n) for n, _, _ in reversed(dims[2:]))):
        index = list(zip(reversed(at), dims[2:], strict=True))
        there_at = src + sum(i * a for i, (_, a, _) in index)
        here_at = dst + sum(i * b for i, (_, _, b) in index)
        yield Strip(rows, row, there_at, src_step, here_at, dst_step)


def _join(a: Strip, b: Strip) -> Strip | None:
    """One strip with the elements of `a`, then those of `b`; None where there is none."""
    if a.rows == b.rows == 1 and b.src - a.src == b.dst - a.dst == a.row:
        return Strip(1, a.row + b.row, a.src, 0, a.dst, 0)
    if a.row != b.row:
        return None
    if a.rows > 1:
        src_step, dst_step = a.src_step, a.dst_step
    elif b.rows > 1:
        src_step, dst_step = b.src_step, b.dst_step
    else:
        src_step, dst_step = b.src - a.src, b.dst - a.dst
    if min(src_step, dst_step) < a.row or (b.rows > 1 and (b.src_step, b.dst_step) != (src_step, dst_step)):
        return None
    if b.src - a.src != a.rows * src_step or b.dst - a.dst != a.rows * dst_step:
        return None
    return Strip(a.rows + b.rows, a.row, a.src, src_step, a.dst, dst_step)
