"""Running a datapath beside computation: chunks arrive and are passed on.

Receives are posted before the sends that answer them and `AHEAD` steps early, so that a peer's notice does not wait
behind payload (`exchange`). A chunk's memory is made when its receive is posted, which waits for the caller to be done
with the steps before, and given up when caller and last send are done with it: no more than a few steps' worth lies
about. The order of everything is the datapath's; nothing depends on timing. The way back is `flow_back`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import CommError, Group
from trainsys.comm.routed import Leg, Routed

AHEAD = 2  # steps whose receives are posted beyond the one that the caller is at
TAG = 1 << 29  # apart from those of other messages on a group of the same ranks
_CHECK_S = 0.5  # how often a courier that waits for its caller looks whether the group was aborted

Offsets = Callable[[int], Sequence[int]]  # of a chunk: where its runs begin in its tensor, and where the last one ends


class Arrival(NamedTuple):
    """Runs [first, last) of `chunk`, as one flat tensor."""

    chunk: int
    first: int
    last: int
    data: Tensor


class Gather:
    """An all-gather under way.

    Args:
        group: contains every member.
        members: global ranks by member number.
        own: this member's chunks in order, flat.
        offsets: in elements, alike on all members.
        channel: 0 to 15; those of flows that are under way at the same time differ.
    """

    def __init__(
        self, group: Group, members: Sequence[int], routed: Routed, own: Sequence[Tensor], offsets: Offsets,
        channel: int = 0,
    ) -> None:  # fmt: skip
        assert routed.size * routed.slices <= 1 << 24, routed.name
        self._group, self._members, self._routed, self._offsets = group, members, routed, offsets
        self._me, self._tag, self._like = members.index(group.rank), TAG | channel << 24, own[0]
        self._sends, self._arrivals = routed.sends[self._me], routed.arrivals[self._me]
        self._chunks = {self._me * routed.slices + part: tensor for part, tensor in enumerate(own)}
        self._begin: dict[int, int] = {}  # of each chunk: where in it begins what has come
        self._uses = Counter(leg.chunk for steps in (self._sends, self._arrivals) for legs in steps for leg in legs)
        self._guard, self._done = threading.Lock(), threading.Semaphore(AHEAD + 1)
        self._progress = group.advance(self._carry())

    def arrivals(self) -> Iterator[list[Arrival]]:
        """What arrives in each step in which anything does; asking for the next says that one is done with the last.

        Raises:
            CommError: naming the step and the rank that is waited for.
        """
        for legs in self._arrivals:
            for leg in legs:
                self._wait(leg)
            if legs:
                yield [Arrival(leg.chunk, leg.first, leg.last, self._take(leg.chunk)) for leg in legs]
            self._done.release()

    def finish(self) -> None:
        """Wait until what this member sends has been taken; call it when all has arrived. Raises CommError."""
        while self._progress.next():
            pass

    def _wait(self, leg: Leg) -> None:
        try:
            self._progress.next()
        except CommError as error:
            raise CommError(
                f"{self._routed.name}, step {leg.step}: chunk {leg.chunk} from rank {self._members[leg.src]}: {error}"
            ) from None

    def _carry(self) -> Iterator[None]:
        """What the courier does; an event is the arrival of one leg."""
        posted = [list[Work]() for _ in self._arrivals]
        leaving = [list[Work]() for _ in self._sends]
        at_once = 1 if self._routed.relays else len(self._sends)
        next_post = 0

        def post(until: int) -> int:
            for step in range(next_post, min(until, len(posted))):
                wait_for_caller(self._done, self._group)
                posted[step] = [self._receive(leg) for leg in self._arrivals[step]]
            return max(next_post, min(until, len(posted)))

        next_post = post(AHEAD + 1)
        for step in range(at_once):
            leaving[step] = [self._send(leg) for leg in self._sends[step]]
        for step, works in enumerate(posted):
            for work in works:
                self._group.finish([work])
                yield
            works.clear()
            if step + 1 >= at_once and step + 1 < len(leaving):
                leaving[step + 1] = [self._send(leg) for leg in self._sends[step + 1]]
            next_post = post(step + AHEAD + 2)
            if at_once == 1:
                self._group.finish(leaving[step])
                leaving[step].clear()
        for works in leaving:
            self._group.finish(works)

    def _receive(self, leg: Leg) -> Work:
        offsets = self._offsets(leg.chunk)
        self._begin[leg.chunk] = offsets[leg.first]
        self._chunks[leg.chunk] = self._like.new_empty(offsets[leg.last] - offsets[leg.first])
        return self._group.irecv(self._chunks[leg.chunk], self._members[leg.src], self._tag | leg.chunk)

    def _send(self, leg: Leg) -> Work:
        offsets, begin = self._offsets(leg.chunk), self._begin.get(leg.chunk, 0)
        part = self._take(leg.chunk)[offsets[leg.first] - begin : offsets[leg.last] - begin]
        return self._group.isend(part, self._members[leg.dst], self._tag | leg.chunk)

    def _take(self, chunk: int) -> Tensor:
        """A chunk that is here; who takes it last takes it away."""
        with self._guard:
            self._uses[chunk] -= 1
            return self._chunks[chunk] if self._uses[chunk] else self._chunks.pop(chunk)


def wait_for_caller(done: threading.Semaphore, group: Group) -> None:
    """Until the semaphore is released. Raises CommError if the group is aborted meanwhile."""
    while not done.acquire(timeout=_CHECK_S):
        if group.torn or group.frozen:
            raise CommError(f"group {group.name} was aborted")
