"""All process groups of one rank, edited in place when membership changes.

The interface follows c10d's coming ``reconfigure``: one call names the new generation and the groups wanted in it;
groups whose members are unchanged and which are clean on every member are kept, the others are built under a fresh
epoch-named prefix. The old groups go only after the new ones stand.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

from torch._C._distributed_c10d import Store

from trainsys.comm.group import CommError, Group


class Communicator:
    """The groups of this rank, keyed by their ranks.

    Args:
        store: c10d store hosted outside the training ranks.
        rank: this process's global rank.
        backend: ``gloo`` or ``nccl``.
        timeout_s: operation timeout of every group.
    """

    def __init__(self, store: Store, rank: int, backend: str = "gloo", timeout_s: float = 60.0) -> None:
        self._store, self.rank, self._backend, self._timeout_s = store, rank, backend, timeout_s
        self._groups: dict[tuple[int, ...], Group] = {}
        self._lock = threading.Lock()
        self._aborted_epoch = -1  # every generation up to this one is dead
        self._epoch = -1

    def reconfigure(self, epoch: int, wanted: Sequence[tuple[int, ...]], keep: Collection[str] = ()) -> None:
        """Enter generation `epoch` with exactly the groups `wanted` (those that contain this rank).

        Every member must pass the same `wanted` order and the same `keep` (names of groups clean on all members).

        Raises:
            CommError: a peer died or the generation was aborted; call again with a higher epoch.
        """
        with self._lock:
            self._epoch = epoch
        new: dict[tuple[int, ...], Group] = {}
        for ranks in wanted:
            if self.rank not in ranks or ranks in new:
                continue
            old = self._groups.get(ranks)
            if old is not None and old.clean and old.name in keep:
                old.frozen = False
                new[ranks] = old
                continue
            name = f"e{epoch}/{','.join(map(str, ranks))}"
            group = Group(self._store, name, ranks, self.rank, self._backend, self._timeout_s)
            with self._lock:
                new[ranks] = group
                self._groups[ranks], replaced = group, self._groups.get(ranks)
                dead = self._aborted_epoch >= epoch
            if replaced is not None:
                replaced.close()
            if dead:
                self.abort(epoch)
                raise CommError(f"generation {epoch} was aborted while it was built")
        with self._lock:
            stale = [g for ranks, g in self._groups.items() if ranks not in new]
            self._groups = new
        for group in stale:
            group.close()

    def group(self, ranks: Sequence[int]) -> Group:
        return self._groups[tuple(ranks)]

    def abort(self, epoch: int) -> None:
        """From any thread: make every blocked or later operation of generations up to `epoch` raise `CommError`.

        Groups with nothing under way keep their connections and may be carried over by `reconfigure`.
        """
        with self._lock:
            self._aborted_epoch = max(self._aborted_epoch, epoch)
            groups = list(self._groups.values()) if self._epoch <= epoch else []
        for group in groups:
            group.freeze()

    def check(self) -> None:
        """Raise `CommError` if this generation was aborted; called between operations."""
        if self._aborted_epoch >= self._epoch:
            raise CommError(f"generation {self._epoch} was aborted")

    def clean(self) -> dict[str, int]:
        """Names of the groups that may be kept, with their operation counts (equal on all members when whole)."""
        return {g.name: g.seq for g in self._groups.values() if g.clean}

    def close(self) -> None:
        for group in self._groups.values():
            group.close()
        self._groups = {}
