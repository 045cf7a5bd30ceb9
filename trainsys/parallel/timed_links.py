"""Emulated links: messages arrive when a link would have brought them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Expected, Group


@dataclass(frozen=True)
class _Coming:
    """A receive under way: what it fills, from whom, since when."""

    work: Work
    buffer: Tensor
    src: int
    posted_s: float


class TimedLinks:
    """What an executor needs of a `Group`, whose messages arrive when a link would have brought them.

    The first number of a message, which must be float64, says when it leaves: those to one peer queue. It takes its
    time once both sides have called. The clock is CLOCK_MONOTONIC, which all processes of one machine share.

    Args:
        to_s, from_s: peer's global rank -> seconds of a message to it, and from it.
    """

    def __init__(self, group: Group, to_s: Callable[[int], float], from_s: Callable[[int], float]) -> None:
        self._group, self._to_s, self._from_s = group, to_s, from_s
        self._free: dict[int, float] = {}

    def isend(self, tensor: Tensor, dst: int, tag: int) -> Work:
        """Write into the message when it leaves, and send it."""
        start = max(time.perf_counter(), self._free.get(dst, 0.0))
        self._free[dst] = start + self._to_s(dst)
        tensor.view(-1)[0] = start
        return self._group.isend(tensor, dst, tag)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> _Coming:
        """Begin to receive; then `expect` and `take`."""
        return _Coming(self._group.irecv(tensor, src, tag), tensor, src, time.perf_counter())

    def expect(self, coming: _Coming) -> tuple[_Coming, Expected]:
        return coming, self._group.expect(coming.work)

    def take(self, expected: tuple[_Coming, Expected]) -> None:
        """Finish what `expect` was told of, not before its time."""
        coming, own = expected
        self._group.take(own)
        way_s = self._from_s(coming.src) + self._group.lag_s(coming.src)
        arrived = max(float(coming.buffer.view(-1)[0]), coming.posted_s) + way_s
        self._group.stamps.end(own.stamp, arrived)
        with self._group.stamps.waiting(own.stamp):
            sleep_until(arrived)

    def finish(self, works: Sequence[Work]) -> None:
        self._group.finish(works)

    def wait_all(self, works: Sequence[Work]) -> None:
        self._group.wait_all(works)


def sleep_until(end_s: float) -> None:
    left = end_s - time.perf_counter()
    if left > 0:
        time.sleep(left)
