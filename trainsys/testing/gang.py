"""Ranks that are killed in the middle of collectives, edited and replaced: what a manager does, without the training.

A process per rank reduces without pause in its group of all; the gang kills one, tells the others, has them enter the
next generation, and takes times. All clocks are the machine's one monotonic clock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any, NamedTuple

from torch._C._distributed_c10d import TCPStore

from trainsys.elastic.forks import forkserver

Ranks = tuple[int, ...]
Groups = Callable[[Sequence[int]], list[Ranks]]


@dataclass(frozen=True)
class Order:
    """Enter generation `epoch` with `groups`; those whose names are in `keep` are carried over."""

    epoch: int
    groups: tuple[Ranks, ...]
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Leave every generation up to `epoch`."""

    epoch: int


@dataclass(frozen=True)
class Word:
    """A rank's word: it `stands` in a generation (its first all-reduce is done), or is `free` of it again.

    Attributes:
        time: of that, in s.
        built: when the groups stood, in s.
        clean: quiet groups, by name, and their operation counts.
        held: groups that it has.
        total: of the all-reduce of ones.
        failed: the generation was not entered.
    """

    kind: str
    epoch: int
    time: float
    built: float = 0.0
    clean: Mapping[str, int] = field(default_factory=dict)
    held: int = 0
    total: float = 0.0
    failed: bool = False


HERE = "here"  # a body's first word
Body = Callable[[int, Connection, int, float, int], None]  # rank, link, the store's port, timeout_s, floats


def edits(rank: int, link: Connection, port: int, timeout_s: float, floats: int) -> None:
    """Body of a rank whose groups are a `Communicator`'s."""
    import torch

    from trainsys.comm.communicator import Communicator
    from trainsys.comm.disposal import settle
    from trainsys.comm.group import CommError

    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    comm = Communicator(store, rank, timeout_s=timeout_s)
    inbox: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=read, args=(link, inbox, comm.abort), daemon=True).start()
    data, one = torch.zeros(floats), torch.ones(1)
    link.send(HERE)
    while True:
        order = inbox.get()
        try:
            comm.reconfigure(order.epoch, order.groups, order.keep)
            built, one[0] = time.perf_counter(), 1.0
            everyone = comm.group(order.groups[0])
            everyone.all_reduce(one)
            now = time.perf_counter()
            settle()
            link.send(Word("stands", order.epoch, now, built, {}, len(comm.groups), one.item()))
            while True:
                everyone.all_reduce(data)
        except CommError:
            entered = any(group.name.startswith(f"e{order.epoch}/") for group in comm.groups)  # the abort came after
            link.send(
                Word("free", order.epoch, time.perf_counter(), 0.0, comm.clean(), len(comm.groups), failed=not entered)
            )


def read(link: Connection, inbox: SimpleQueue[Order], abort: Callable[[int], None]) -> None:
    """Body of the thread that listens to the gang: orders into `inbox`, faults to `abort`."""
    try:
        while True:
            message = link.recv()
            if isinstance(message, Fault):
                abort(message.epoch)
            else:
                inbox.put(message)
    except (EOFError, OSError):
        os._exit(0)


class _Member(NamedTuple):
    process: BaseProcess
    link: Connection


class Gang:
    """`size` ranks of `body`; use it in a ``with`` statement.

    Args:
        groups: wanted of a generation's members; the first is of all of them.
        timeout_s: of the groups' operations.
        floats: of each all-reduce.
    """

    def __init__(
        self, size: int, groups: Groups, body: Body = edits, timeout_s: float = 10.0, floats: int = 1 << 18
    ) -> None:
        self.size, self.epoch, self._groups = size, -1, groups
        self._body, self._timeout_s, self._floats = body, timeout_s, floats
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._members: dict[int, _Member] = {}

    def __enter__(self) -> Gang:
        self.fill()
        return self

    def __exit__(self, *error: object) -> None:
        for rank in self.members:
            self.kill(rank)

    @property
    def members(self) -> Ranks:
        return tuple(sorted(self._members))

    def fill(self) -> None:
        """Start a process for every rank that has none, and wait until it is there."""
        fresh = sorted(set(range(self.size)) - set(self._members))
        for rank in fresh:
            ours, theirs = forkserver().Pipe()
            args = (rank, theirs, self._store.port, self._timeout_s, self._floats)
            process = forkserver().Process(target=self._body, args=args, daemon=True)
            process.start()
            theirs.close()
            self._members[rank] = _Member(process, ours)
        for rank in fresh:
            assert self._members[rank].link.recv() == HERE

    def kill(self, rank: int) -> float:
        """SIGKILL; returns when it was sent, once the process is dead. The others are not told."""
        member, now = self._members.pop(rank), time.perf_counter()
        member.process.kill()
        wait([member.process.sentinel])
        member.link.close()
        member.process.join()
        return now

    def open_files_and_threads(self, rank: int) -> tuple[int, int]:
        """Of a member's process."""
        folder = f"/proc/{self._members[rank].process.pid}"
        return len(os.listdir(f"{folder}/fd")), len(os.listdir(f"{folder}/task"))

    def fault(self, ranks: Collection[int] | None = None) -> None:
        """Tell the ranks (all) to leave the generation."""
        for rank in self.members if ranks is None else ranks:
            self._members[rank].link.send(Fault(self.epoch))

    def order(self, keep: Collection[str] = ()) -> float:
        """Have the members enter the next generation; returns when they were told."""
        self.epoch += 1
        now, order = time.perf_counter(), Order(self.epoch, tuple(self._groups(self.members)), tuple(keep))
        for member in self._members.values():
            member.link.send(order)
        return now

    def hear(self, kind: str, ranks: Collection[int] | None = None, timeout_s: float = 60.0) -> dict[int, Word]:
        """The next word of that kind on this generation from each of the ranks (all)."""
        heard: dict[int, Word] = {}
        deadline, awaited = time.monotonic() + timeout_s, set(self.members if ranks is None else ranks)
        while awaited - set(heard):
            links = {self._members[rank].link: rank for rank in awaited - set(heard)}
            ready = wait(list(links), max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"ranks {sorted(links.values())} are not {kind} within {timeout_s:g} s")
            for link in [link for link in links if link in ready]:
                word = link.recv()
                if (word.kind, word.epoch) == (kind, self.epoch):
                    heard[links[link]] = word
        return heard


def last(words: Mapping[Any, Word]) -> float:
    """When the last of them was so, in s."""
    return max(word.time for word in words.values())
