"""Spans: how the moves between two ranks become messages with the fewest copies.

A span is a row of moves that lie end to end in the sender's storage, or in the receiver's, or both. A long one travels
as a message of its own, straight out of that storage and straight into place; at an end where it is scattered it goes
through a staging buffer. What is too short for a message of its own is packed with its neighbours. Both ends cut alike,
because a move says where it lies on either side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from trainsys.space.box import Box
from trainsys.space.transition import Move, Place


@dataclass(frozen=True)
class Span:
    """Moves that travel in one message per slot, in this order.

    Attributes:
        out: offset in the source's storage from which all of them lie end to end, None where they are scattered.
        into: the same in the destination's storage.
    """

    moves: tuple[Move, ...]
    numel: int
    out: int | None
    into: int | None


@dataclass(frozen=True)
class Cut:
    """One part of a round: `direct` spans, and the `packed` rest, which shares one message."""

    direct: tuple[Span, ...]
    packed: tuple[Move, ...]

    def each(self, slots: Sequence[str]) -> Iterator[tuple[Span, Sequence[str]]]:
        """The messages, in the order of both ends: each direct span once per slot, then the rest in one."""
        for span in self.direct:
            for slot in slots:
                yield span, (slot,)
        if self.packed:
            yield Span(self.packed, sum(m.box.numel for m in self.packed), None, None), slots

    def messages(self, slots: int) -> int:
        """How many there are."""
        return slots * len(self.direct) + bool(self.packed)

    def staged(self, sending: bool, slots: int) -> int:
        """Elements that must be staged at one end."""
        scattered = sum(s.numel for s in self.direct if (s.out if sending else s.into) is None)
        return slots * (scattered + sum(m.box.numel for m in self.packed))


def run_offset(box: Box, place: Place) -> int | None:
    """Where `box` begins in the flat storage if it is one contiguous run of it, else None."""
    outer = place.box.shape
    begin = [a - b for a, b in zip(box.start, place.box.start, strict=True)]
    whole = True  # every inner dim so far is taken in full
    for size, n in zip(reversed(box.shape), reversed(outer), strict=True):
        if not whole and size > 1:
            return None
        whole = whole and size == n
    return place.offset + sum(b * prod(outer[d + 1 :]) for d, b in enumerate(begin))


def spans(moves: Sequence[Move]) -> list[Span]:
    """Join neighbours as long as each end keeps what it has: a run stays a run, scattered stays scattered."""
    found: list[list[Move]] = []
    state: list[tuple[int | None, int | None, int]] = []  # out, into, numel
    for move in moves:
        out, into, n = run_offset(move.box, move.src_at), run_offset(move.box, move.dst_at), move.box.numel
        if found and _follows(state[-1][0], state[-1][2], out) and _follows(state[-1][1], state[-1][2], into):
            found[-1].append(move)
            state[-1] = (*state[-1][:2], state[-1][2] + n)
        else:
            found.append([move])
            state.append((out, into, n))
    return [Span(tuple(m), n, out, into) for m, (out, into, n) in zip(found, state, strict=True)]


def _follows(begin: int | None, numel: int, next_begin: int | None) -> bool:
    return next_begin is None if begin is None else next_begin == begin + numel


def cut(moves: Sequence[Move], least: int) -> Cut:
    """Decide what is packed.

    Args:
        moves: one part of a round.
        least: elements from which a span is worth a message of its own.
    """
    direct, packed = [], []
    for span in spans(moves):
        if span.numel >= least and (span.out is not None or span.into is not None):
            direct.append(span)
        else:
            packed += span.moves
    return Cut(tuple(direct), tuple(packed))
