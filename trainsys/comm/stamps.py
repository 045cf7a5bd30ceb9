"""When each operation of a rank began and ended, and what its main thread is in: a ring buffer of fixed size.

The form is C4's (Dong et al. 2024, arXiv:2406.04594, §4.1): every rank stamps its own operations, somebody else
compares ranks. A message has the same name at both ends, (key, nth): its group and tag, and how many of that name went
before it between the two. So whoever sees both ends knows who was late, and how long the way took. Times are of
CLOCK_MONOTONIC.
"""

from __future__ import annotations

import threading
import time
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

SEND, RECV, REDUCE = range(3)
KINDS = ("send", "recv", "all-reduce")
ALL = -1  # the peer of an operation of a whole group
SAMPLES = 16  # messages of one pair and step that are shipped, and newest ones that a heartbeat tells of
_OPEN = float("nan")
_WHOLE = (1 << 31) - 1  # tag of operations without one

Name = tuple[int, int]  # (key, nth)
_Begun = tuple[int, int, int, int, int, int, float]  # number, kind, key, nth, peer, bytes, when


@dataclass(frozen=True)
class StepTimes:
    """What one rank measured in one step.

    Attributes:
        compute: kind of action -> seconds of each, in the order in which they ran, without waiting for others.
        sent: peer -> messages begun: (key, nth, when).
        got: peer -> messages arrived: (key, nth, when the receive was posted, when it was complete, bytes, whether that
            time is known: operations are waited for in turn, and of one that was complete by its turn it is not).
        counts: peer -> (messages, bytes) of all that arrived, of which `got` has `SAMPLES` at most.
        now_s: this rank's clock as it was shipped.
    """

    compute: dict[str, tuple[float, ...]] = field(default_factory=dict)
    sent: dict[int, tuple[tuple[int, int, float], ...]] = field(default_factory=dict)
    got: dict[int, tuple[tuple[int, int, float, float, int, bool], ...]] = field(default_factory=dict)
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    now_s: float = 0.0


@dataclass(frozen=True)
class Awaited:
    """A message or group operation that a main thread cannot go on without."""

    peer: int
    name: Name
    kind: str
    for_s: float


@dataclass(frozen=True)
class Doing:
    """What a rank's main thread is in; seconds are ages.

    Attributes:
        what: an action or phase; ``wait`` while it waits for others.
        awaited: what it waits for, if it waits.
        sent: peer -> the newest messages begun, with their age.
        now_s: the rank's clock.
    """

    what: str
    for_s: float
    now_s: float = 0.0
    awaited: tuple[Awaited, ...] = ()
    sent: dict[int, dict[Name, float]] = field(default_factory=dict)


class Stamps:
    """The operations of one rank.

    Args:
        capacity: operations remembered; older ones are overwritten.
    """

    def __init__(self, capacity: int = 8192) -> None:
        self._capacity, self._lock, self._main = capacity, threading.Lock(), threading.get_ident()
        self._begun: list[_Begun] = [(0, 0, 0, 0, 0, 0, 0.0)] * capacity
        self._ended, self._known = array("d", bytes(8 * capacity)), array("b", bytes(capacity))
        self._next = 1  # 0 is no operation
        self._floor = self._step = 1  # first operation of this generation, and of this step
        self._counts: dict[tuple[int, int, int], int] = {}
        self._members: dict[int, tuple[int, ...]] = {}
        self._doing = ("start", time.monotonic())
        self._waits: int | None = None  # the operation that the main thread waits for; 0: others wait for it
        self._since = 0.0
        self._compute: dict[str, list[float]] = {}
        self.blocked_s = 0.0  # that the main thread waited, in all

    def reset(self) -> None:
        """A new generation of groups: names are counted anew on all ranks, and what was open never ends."""
        with self._lock:
            self._floor = self._step = self._next
            self._counts, self._compute = {}, {}

    def know(self, group: str, ranks: Sequence[int]) -> int:
        """The number by which operations of a group go."""
        number = zlib.crc32(group.encode()) << 31
        self._members[number] = tuple(ranks)
        return number

    # -- operations ----------------------------------------------------------------------------------------------

    def begin(self, kind: int, group: int, peer: int, tag: int, num_bytes: int) -> int:
        """Stamp the begin of an operation.

        Args:
            group: from `know`.
            peer: global rank, or `ALL`; `tag` counts only with a peer.

        Returns:
            Its number, for `end` and `waiting`.
        """
        key, now = group | (tag if peer != ALL else _WHOLE), time.monotonic()
        with self._lock:
            number = self._next
            self._next = number + 1
            count = (kind, peer, key)
            nth = self._counts.get(count, 0)
            self._counts[count] = nth + 1
            i = number % self._capacity
            self._begun[i] = (number, kind, key, nth, peer, num_bytes, now)
            self._ended[i] = _OPEN
        return number

    def end(self, number: int, at_s: float | None = None, known: bool = True) -> None:
        """Stamp its end: now, or `at_s` if that is later than what is stamped. `known`: it was not complete before."""
        i = number % self._capacity
        if number and self._begun[i][0] == number:
            at_s, stamped = time.monotonic() if at_s is None else at_s, self._ended[i]
            if not at_s <= stamped:  # true of what is open, too
                self._ended[i], self._known[i] = at_s, known

    def waiting(self, number: int = 0) -> _Waiting:
        """A context: the caller waits for an operation, or for whatever is open; told of the main thread alone."""
        return _Waiting(self, number)

    def _wait(self, number: int) -> bool:
        """Whether this is told: of the outermost context of the main thread."""
        if self._waits is not None or threading.get_ident() != self._main:
            return False
        self._since, self._waits = time.monotonic(), number
        return True

    def _waited(self) -> None:
        now = time.monotonic()
        self.blocked_s += now - self._since
        self._waits, self._doing = None, (self._doing[0], now)

    # -- computing -----------------------------------------------------------------------------------------------

    def enter(self, what: str) -> None:
        """The main thread begins an action or a phase."""
        self._doing = (what, time.monotonic())

    def computed(self, kind: str, seconds: float) -> None:
        """An action took so long, what it waited for others left out."""
        self._compute.setdefault(kind, []).append(seconds)

    # -- told to others ------------------------------------------------------------------------------------------

    def doing(self) -> Doing:
        """What the main thread is in; any thread may ask."""
        now, waits, since, (what, began) = time.monotonic(), self._waits, self._since, self._doing
        sent: dict[int, dict[Name, float]] = {}
        for i in self._newest():
            _, kind, key, nth, peer, _, at_s = self._begun[i]
            if kind != RECV and len(names := sent.setdefault(peer, {})) < SAMPLES:
                names[key, nth] = now - at_s
        if waits is None:
            return Doing(what, now - began, now, (), sent)
        numbers = [waits % self._capacity] if waits else [i for i in self._newest() if self._begun[i][1] != SEND]
        awaited = [a for i in numbers if self._ended[i] != self._ended[i] for a in self._awaited(i, now)]
        return Doing("wait", now - since, now, tuple(awaited[: 4 * SAMPLES]), sent)

    def take_step(self) -> StepTimes:
        """What has ended since the last call."""
        with self._lock:
            first, stop = max(self._step, self._next - self._capacity), self._next
            self._step = stop
            compute, self._compute = self._compute, {}
        sent: dict[int, list[tuple[int, int, float]]] = {}
        got: dict[int, list[tuple[int, int, float, float, int, bool]]] = {}
        for number in range(first, stop):
            i = number % self._capacity
            _, kind, key, nth, peer, num_bytes, at_s = self._begun[i]
            if kind == SEND:
                sent.setdefault(peer, []).append((key, nth, at_s))
            elif kind == RECV and (ended := self._ended[i]) == ended:
                got.setdefault(peer, []).append((key, nth, at_s, ended, num_bytes, bool(self._known[i])))
        return StepTimes(
            {kind: tuple(seconds) for kind, seconds in compute.items()},
            {peer: tuple(sorted(messages)[:SAMPLES]) for peer, messages in sent.items()},
            {peer: tuple(sorted(messages)[:SAMPLES]) for peer, messages in got.items()},
            {peer: (len(messages), sum(m[4] for m in messages)) for peer, messages in got.items()},
            time.monotonic(),
        )

    def _newest(self) -> Iterator[int]:
        """Places of the operations of this generation, from the newest back, a few hundred at most."""
        stop = self._next
        for number in range(stop - 1, max(self._floor, stop - 512, stop - self._capacity) - 1, -1):
            yield number % self._capacity

    def _awaited(self, i: int, now: float) -> Iterator[Awaited]:
        _, kind, key, nth, peer, _, at_s = self._begun[i]
        of = (peer,) if peer != ALL else self._members.get(key & ~_WHOLE, ())
        for other in of:
            yield Awaited(other, (key, nth), KINDS[kind], now - at_s)


class _Waiting:
    """The context of `Stamps.waiting`; a class, for it is entered with every operation."""

    __slots__ = ("_number", "_stamps", "_told")

    def __init__(self, stamps: Stamps, number: int) -> None:
        self._stamps, self._number, self._told = stamps, number, False

    def __enter__(self) -> None:
        self._told = self._stamps._wait(self._number)

    def __exit__(self, *raised: object) -> None:
        if self._told:
            self._stamps._waited()
