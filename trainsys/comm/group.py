"""One process group over raw c10d backends, with an abort that frees every blocked thread.

torch 2.13's own abort, shutdown and destroy release nobody on gloo: a rank that is not a neighbour of the dead one
waits out the whole timeout. ``shutdown(2)`` on the group's connected sockets frees the peers, so a group knows which
sockets are its own; this process's own thread is freed by `wait_all`. Groups are addressed by global rank; ranks
keep their numbers when others leave.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from queue import SimpleQueue
from typing import Any

import torch
from torch._C._distributed_c10d import PrefixStore, Store, Work

from trainsys.comm.backends import BACKENDS
from trainsys.comm.backends.backend import Backend
from trainsys.comm.backends.connect import Donor, Place, connect
from trainsys.comm.disposal import let_go
from trainsys.comm.sockets import Socket, bound_if_local, connected_sockets, connections, shut
from trainsys.comm.stamps import ALL, RECV, REDUCE, SEND, Stamps
from trainsys.comm.waiting import Answers, brief, outcome, run_elsewhere, wait_elsewhere


class CommError(RuntimeError):
    """Communication failed or was aborted; the tensors of the operation are undefined (*torn*)."""


_AT_ONCE_S = 1e-4  # a wait that takes no longer found its operation complete
_END = "\0"  # an answer: all has been done


@dataclass(frozen=True, eq=False)
class Expected:
    """An operation that a thread waits for already; `answers` is None where only the caller's own thread can."""

    work: Work
    answers: Answers | None
    stamp: int = 0


class Progress:
    """Communication that goes on beside the caller's work, one event after the other; see `Group.advance`."""

    def __init__(self, group: Group, events: Iterator[None], answers: Answers | None) -> None:
        self._group, self._events, self._answers, self._over = group, events, answers, False
        if answers is not None:
            run_elsewhere(self._run)

    def next(self) -> bool:
        """Wait for the next event; False when there is none left. Raises CommError."""
        if self._answers is None:
            return next(self._events, self) is None
        if self._over:
            return False
        with self._group.stamps.waiting():
            error = self._answers.get()
        if error == "":
            return True
        self._over = True
        self._group.forget(self._answers)
        if error != _END:
            raise CommError(error)
        return False

    def _run(self) -> None:
        assert self._answers is not None
        try:
            for _ in self._events:
                self._answers.put("")
            self._answers.put(_END)
        except Exception as error:
            self._answers.put(str(error) or repr(error))


class Group:
    """A process group of `ranks` (any order; position = group rank) under one store prefix.

    Args:
        store: a c10d store reachable by every member.
        name: unique per generation, e.g. ``e3/0,1,3``; never reused.
        ranks: global ranks.
        rank: this process's global rank.
        backend: ``gloo`` or ``nccl``.
        timeout_s: how long an operation may take before it fails by itself.
        stamps: where operations are stamped; by default its own.
        donors: what other groups leave behind, for backends that can make the new group of it.
        address: of this host, where peers connect to; where the network has several paths it says which.
    """

    def __init__(
        self, store: Store, name: str, ranks: Sequence[int], rank: int, backend: str, timeout_s: float,
        stamps: Stamps | None = None, donors: Sequence[Donor] = (), address: str = "",
    ) -> None:  # fmt: skip
        self.name, self.ranks, self.rank, self._kind = name, tuple(ranks), rank, _known(backend)
        self.seq = 0  # operations started; a group is carried over only where all members count the same
        self.pending = 0
        self.torn = False
        self.frozen = False  # refuses new operations until carried into the next generation
        self.refused = 0  # operations that were not begun, because the generation had been aborted
        self._guard = threading.Lock()
        self._waiting: set[Answers] = set()  # one per thread that waits here
        self._index = {r: i for i, r in enumerate(self.ranks)}
        self.stamps = stamps or Stamps(64)
        self._number = self.stamps.know(name, ranks)
        self._stamp_of: dict[int, tuple[int, int]] = {}  # id of a work -> its stamp, and its source if it receives
        self.lag_s: Callable[[int], float] = lambda src: 0.0  # emulated: how late arrives what comes from a rank
        prefix = PrefixStore(name, store)
        # operations begun on it directly are neither counted nor freed by an abort
        place = Place(prefix, name, self.ranks, self._index[rank], timedelta(seconds=timeout_s), address)
        try:
            self.backend: Any = connect(self._kind, place, donors)
            listeners = place.listeners()
        except RuntimeError as error:
            raise CommError(f"cannot connect the group: {brief(error)}") from None
        self._ends = listeners.pop(place.index)
        self._sockets = connections(self._ends, {end for ends in listeners for end in ends})
        for entry in self._sockets:
            bound_if_local(entry)

    def stamp_with(self, stamps: Stamps) -> None:
        """From now on, with nothing under way."""
        self.stamps, self._number = stamps, stamps.know(self.name, self.ranks)

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def sockets(self) -> frozenset[Socket]:
        """(file descriptor, inode) of the connections that came with it."""
        return self._sockets

    @property
    def num_sockets(self) -> int:
        """Connections that came with it."""
        return len(self._sockets)

    @property
    def clean(self) -> bool:
        """Nothing failed and nothing is under way: the group may be used in the next epoch."""
        return not self.torn and self.pending == 0

    def start(self) -> Any:
        """Count an operation as begun; refuses once aborted, so that no thread blocks after the abort."""
        with self._guard:
            if self.torn or self.frozen:
                self.refused += 1
                raise CommError(f"group {self.name} was aborted")
            self.seq += 1
            self.pending += 1
            return self.backend

    def wait(self, work: Work) -> None:
        """Finish an operation begun by `isend` or `irecv`."""
        self.wait_all([work])

    def expect(self, work: Work) -> Expected:
        """Have an `irecv` waited for from now on: `take` is quick when it is complete by then, a `wait` is not."""
        if not self._kind.blocks:
            return Expected(work, None)
        answers, (stamp, _) = self._listen(), self._stamp_of.get(id(work), (0, -1))
        wait_elsewhere([work], answers, self._outcome)
        return Expected(work, answers, stamp)

    def take(self, expected: Expected) -> None:
        """Finish what `expect` was told of. Raises CommError as `wait_all` does."""
        if expected.answers is None:
            self.wait(expected.work)
            return
        with self.stamps.waiting(expected.stamp):
            error = expected.answers.get()
        with self._guard:
            self._waiting.discard(expected.answers)
            self._count(error)
        if error:
            raise CommError(f"group {self.name}: {error}")

    def advance(self, progress: Iterator[None]) -> Progress:
        """Have `progress` carried on beside this thread's work: it posts operations and finishes them by `finish`.

        Under NCCL, which orders streams and blocks no thread, `Progress.next` carries it on in the caller's own thread.
        """
        answers = self._listen() if self._kind.blocks else None
        return Progress(self, progress, answers)

    def finish(self, works: Iterable[Work]) -> None:
        """As `wait_all`, in a thread that an abort may leave behind. Raises CommError."""
        for work in works:
            with self.stamps.waiting(self._stamp_of.get(id(work), (0, -1))[0]):
                error = self._outcome(work)
            with self._guard:
                self._count(error)
            if error:
                raise CommError(f"group {self.name}: {error}")

    def wait_all(self, works: Sequence[Work], arrived: Callable[[int], None] | None = None) -> None:
        """Finish operations in turn.

        Args:
            arrived: called with each one's position once it is complete, while the rest is still on the wire.

        Raises:
            CommError: one failed, or the group was aborted; the tensors of all of them are undefined then.
        """
        for i, error in enumerate(self._outcomes(works)):
            with self._guard:
                self._count(error)
            if error:
                raise CommError(f"group {self.name}: {error}")
            if arrived is not None:
                arrived(i)

    def _outcomes(self, works: Sequence[Work]) -> Iterator[str]:
        """What became of each operation: nothing, or what went wrong."""
        if not self._kind.blocks:  # orders streams and returns: must happen in the caller's own thread
            yield from map(self._outcome, works)
            return
        answers, stamps = self._listen(), [self._stamp_of.get(id(work), (0, -1))[0] for work in works]
        wait_elsewhere(works, answers, self._outcome)
        try:
            for stamp in stamps:
                with self.stamps.waiting(stamp):
                    error = answers.get()
                yield error
        finally:
            self.forget(answers)

    def _outcome(self, work: Work) -> str:
        """What became of an operation, and its stamp; of what comes over an emulated slow link that is known late."""
        stamp, source = self._stamp_of.get(id(work), (0, -1))
        began = time.monotonic()
        error = outcome(work)
        late_s = self.lag_s(source) if source >= 0 and not error else 0.0
        while late_s > 0 and not (self.torn or self.frozen):
            time.sleep(min(late_s, 0.02))
            late_s -= 0.02
        if late_s == inf:
            return "aborted"
        self._stamp_of.pop(id(work), None)
        if not error:
            self.stamps.end(stamp, known=time.monotonic() - began > _AT_ONCE_S)
        return error

    def _listen(self) -> Answers:
        """Where outcomes will be told, an abort too."""
        answers: Answers = SimpleQueue()
        with self._guard:
            if self.torn:
                answers.put("aborted")
            self._waiting.add(answers)
        return answers

    def forget(self, answers: Answers) -> None:
        """Nobody listens there any more."""
        with self._guard:
            self._waiting.discard(answers)

    def _count(self, error: str) -> None:
        """One operation has ended; the guard is held."""
        self.pending -= 1
        self.torn = self.torn or bool(error)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sum in place by the backend's own algorithm: fast, and its bits depend on the group's size."""
        self.wait(self._post(lambda pg: pg.allreduce([tensor]), REDUCE, ALL, 0, tensor))

    def isend(self, tensor: torch.Tensor, dst: int, tag: int) -> Work:
        """Begin sending a contiguous tensor to global rank `dst`; finish with `wait`."""
        return self._post(lambda pg: pg.send([tensor], self._index[dst], tag), SEND, dst, tag, tensor)

    def irecv(self, tensor: torch.Tensor, src: int, tag: int) -> Work:
        """Begin receiving into a contiguous tensor from global rank `src`; finish with `wait`."""
        return self._post(lambda pg: pg.recv([tensor], self._index[src], tag), RECV, src, tag, tensor)

    def _post(self, call: Callable[[Any], Work], kind: int, peer: int, tag: int, tensor: torch.Tensor) -> Work:
        backend = self.start()
        stamp = self.stamps.begin(kind, self._number, peer, tag, tensor.nbytes)
        try:
            work = call(backend)
        except RuntimeError as error:
            self.torn = True
            raise CommError(f"group {self.name}: {brief(error)}") from None
        self._stamp_of[id(work)] = stamp, peer if kind == RECV else -1
        return work

    def freeze(self) -> None:
        """Refuse new operations; free the thread that is inside one. A quiet group stays connected and clean."""
        with self._guard:
            self.frozen = True
            blocked = self.pending > 0 or self.torn
        if blocked:
            self.abort()

    def abort(self) -> None:
        """Free every thread blocked in this group, here and (through closed connections) on its peers."""
        with self._guard:
            self.torn = True
            for answers in self._waiting:
                answers.put("aborted")
        self._kind.free(self.backend)
        for fd in self._sockets & connected_sockets():
            shut(fd)

    def donor(self) -> Donor:
        """What the group leaves behind; for groups that nobody can use any more."""
        return Donor(self.name, self.ranks, self.backend, self._ends)

    def close(self, heirs: Iterable[Group] = ()) -> None:
        """Release the sockets, beside the caller (`disposal.settle` waits for it); the group must not be used again.

        Args:
            heirs: groups that may have taken over c10d's object of this one, which then lives on.
        """
        if any(heir.backend is self.backend for heir in heirs):
            self.torn = True
            del self.backend
            return
        if self.pending or self.torn:
            self.abort()  # gloo's destructor waits for operations that can still finish
        self.torn = True
        last = [self.backend]  # gloo closes its sockets when its last reference goes
        del self.backend
        let_go(last.clear)


def _known(backend: str) -> Backend:
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not known; use {' or '.join(BACKENDS)}")
    return BACKENDS[backend]
