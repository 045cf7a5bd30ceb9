"""Running a datapath beside computation: chunks arrive and are passed on.

Receives are posted before the sends that answer them and `AHEAD` steps early, so that a peer's notice does not wait
behind payload (`exchange`). A chunk's memory is made when its receive is posted, which waits for the caller to be done
with the steps before, and given up when caller and last send are done with it: no more than a few steps' worth lies
about. What is here leaves up to `AHEAD` steps early, so that no wire is idle between two steps. No result depends on
timing. The way back is `flow_back`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm import tags
from trainsys.comm.group import CommError, Group
from trainsys.comm.routed import Leg, Routed

AHEAD = 2  # steps whose receives are posted beyond the one that the caller is at
CHECK_S = 0.5  # how often a courier that waits for its caller looks whether the group was aborted

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
        channel: 0 to 10 (`tags`); those of flows that are under way at the same time differ.
        into: where a chunk shall be, flat; None: in memory that is made for it and given up after its last use.
    """

    def __init__(
        self, group: Group, members: Sequence[int], routed: Routed, own: Sequence[Tensor], offsets: Offsets,
        channel: int = 0, into: Callable[[int], Tensor] | None = None,
    ) -> None:  # fmt: skip
        assert routed.size * routed.slices <= 1 << 24, routed.name
        self._group, self._members, self._routed, self._offsets, self._into = group, members, routed, offsets, into
        self._me, self._tag, self._like = members.index(group.rank), tags.channel(channel), own[0]
        self._sends, self._arrivals = routed.sends[self._me], routed.arrivals[self._me]
        self._chunks = {self._me * routed.slices + part: tensor for part, tensor in enumerate(own)}
        self._begin: dict[int, int] = {}  # of each chunk: where in it begins what has come
        self._uses = Counter(leg.chunk for steps in (self._sends, self._arrivals) for legs in steps for leg in legs)
        self._guard, self._done = threading.Lock(), threading.Semaphore(AHEAD + 1)
        self._sending: Leg | None = None  # that the courier waits for at the end
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
        """Wait until what this member sends has been taken; call it when all has arrived.

        Raises:
            CommError: naming the step and the rank that is waited for.
        """
        try:
            while self._progress.next():
                pass
        except CommError as error:
            raise named(error, self._routed, self._members, self._me, self._sending) from None

    def complete(self) -> None:
        """For who wants everything at once: wait for all that arrives, and for what leaves. Raises CommError."""
        for _ in self.arrivals():
            pass
        self.finish()

    def _wait(self, leg: Leg) -> None:
        try:
            self._progress.next()
        except CommError as error:
            raise named(error, self._routed, self._members, self._me, leg) from None

    def _carry(self) -> Iterator[None]:
        """What the courier does; an event is the arrival of one leg."""
        posted = [list[Work]() for _ in self._arrivals]
        leaving: list[dict[Leg, Work]] = [{} for _ in self._sends]
        here = set(self._chunks)
        ahead = AHEAD if self._routed.relays else len(leaving)  # steps whose sends may leave early
        next_post = 0

        def post(until: int) -> int:
            for step in range(next_post, min(until, len(posted))):
                if self._into is None:
                    wait_for_caller(self._done, self._group)
                posted[step] = [self._receive(leg) for leg in self._arrivals[step]]
            return max(next_post, min(until, len(posted)))

        def send(until: int) -> None:
            for step in range(max(0, until - ahead - 1), min(until, len(leaving))):
                for leg in self._sends[step]:
                    if leg.chunk in here and leg not in leaving[step]:
                        leaving[step][leg] = self._send(leg)

        next_post = post(AHEAD + 1)
        send(ahead + 1)
        for step, works in enumerate(posted):
            for leg, work in zip(self._arrivals[step], works, strict=True):
                self._group.finish([work])
                here.add(leg.chunk)
                send(step + ahead + 1)
                yield
            works.clear()
            send(step + ahead + 2)
            next_post = post(step + AHEAD + 2)
            if self._routed.relays:
                self._finish(leaving[step])
        for left in leaving:
            self._finish(left)

    def _finish(self, works: dict[Leg, Work]) -> None:
        for leg, work in works.items():
            self._sending = leg
            self._group.finish([work])
        works.clear()

    def _receive(self, leg: Leg) -> Work:
        offsets = self._offsets(leg.chunk)
        begin, end = offsets[leg.first], offsets[leg.last]
        self._begin[leg.chunk] = begin
        self._chunks[leg.chunk] = (
            self._into(leg.chunk)[begin:end] if self._into is not None else self._like.new_empty(end - begin)
        )
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


def named(error: CommError, routed: Routed, members: Sequence[int], me: int, leg: Leg | None) -> CommError:
    """The error with the step and the rank that member `me` waited for."""
    if leg is None:
        return CommError(f"{routed.name}: {error}")
    peer = f"from rank {members[leg.src]}" if leg.dst == me else f"to rank {members[leg.dst]}"
    return CommError(f"{routed.name}, step {leg.step}: chunk {leg.chunk} {peer}: {error}")


def wait_for_caller(done: threading.Semaphore, group: Group) -> None:
    """Until the semaphore is released. Raises CommError if the group is aborted meanwhile."""
    while not done.acquire(timeout=CHECK_S):
        if group.torn or group.frozen:
            raise CommError(f"group {group.name} was aborted")
