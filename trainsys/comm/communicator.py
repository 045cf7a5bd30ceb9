"""All process groups of one rank, edited in place when membership changes.

The interface follows c10d's coming ``reconfigure``: one call names the new generation and the groups wanted in it;
groups whose members are unchanged and which are clean on every member are kept, the others are built under a fresh
epoch-named prefix. The old groups go only after the new ones stand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence

from torch._C._distributed_c10d import Store

from trainsys.comm.attempt import Attempt, StoreClient
from trainsys.comm.disposal import settle
from trainsys.comm.group import CommError, Group
from trainsys.comm.stamps import Stamps

Ranks = tuple[int, ...]


class Communicator:
    """The groups of this rank, keyed by their ranks.

    Args:
        store: c10d store hosted outside the training ranks.
        rank: this process's global rank.
        backend: ``gloo`` or ``nccl``.
        timeout_s: operation timeout of every group.
        mark: told apart by it from another communicator that builds groups for the same generation.

    Attributes:
        stamps: of the operations of all groups.
        lag_s: emulated: how many seconds late arrives what comes from a rank.
        address: of this host, for each new group: its peers connect there, and so choose a path (`comm/traffic.py`).
    """

    def __init__(
        self, store: Store, rank: int, backend: str = "gloo", timeout_s: float = 60.0, mark: str = ""
    ) -> None:  # fmt: skip
        self._store, self.rank, self._backend, self._timeout_s, self._mark = store, rank, backend, timeout_s, mark
        self.stamps = Stamps()
        self.lag_s: Callable[[int], float] = lambda src: 0.0
        self.address: Callable[[Ranks], str] = lambda ranks: ""
        self._spare: StoreClient | None = None  # one that no thread uses
        self._groups: dict[Ranks, Group] = {}
        self._changed = threading.Condition()
        self._aborted_epoch = -1  # every generation up to this one is dead
        self._epoch = -1

    def reconfigure(self, epoch: int, wanted: Sequence[Ranks], keep: Collection[str] = ()) -> None:
        """Enter generation `epoch` with exactly the groups `wanted` (those that contain this rank).

        Every member must pass the same `wanted` order and the same `keep` (names of groups clean on all members).

        Raises:
            CommError: a peer died or the generation was aborted; call again with a higher epoch.
        """
        with self._changed:
            self._epoch = epoch
        self.stamps.reset()
        mine = list(dict.fromkeys(ranks for ranks in wanted if self.rank in ranks))
        new = {r: g for r, g in self._groups.items() if r in mine and g.clean and g.name in keep}
        new |= self._build(epoch, [ranks for ranks in mine if ranks not in new])
        with self._changed:
            stale = [g for ranks, g in self._groups.items() if new.get(ranks) is not g]
            self._groups = new
            aborted = self._aborted_epoch >= epoch
            for group in new.values():
                group.frozen = aborted
        for group in stale:
            group.close(new.values())
        self.check()

    def _build(self, epoch: int, missing: Sequence[Ranks]) -> dict[Ranks, Group]:
        """Connect new groups, or none: what an attempt that fails has built goes with it."""
        if not missing:
            return {}
        with self._changed:
            client, self._spare = self._spare, None
        attempt = Attempt(
            self._changed, client or StoreClient(self._store), lambda store: self._connect(epoch, store, missing)
        )
        threading.Thread(target=attempt.run, daemon=True, name=f"connect-e{epoch}").start()
        with self._changed:
            self._changed.wait_for(lambda: attempt.over or self._aborted_epoch >= epoch)
            if attempt.over and not attempt.error:
                self._spare = attempt.client
                return attempt.built
        attempt.abandon()
        if attempt.bug is not None:
            raise attempt.bug
        raise CommError(attempt.error or f"generation {epoch} was aborted while connecting")

    def _connect(self, epoch: int, store: Store, missing: Sequence[Ranks]) -> Iterator[tuple[Ranks, Group]]:
        """One group after the other, in the order that all members agree on."""
        donors = [group.donor() for group in self._groups.values() if not group.clean]
        for ranks in missing:
            name = f"e{epoch}{self._mark}/{','.join(map(str, ranks))}"
            group = Group(
                store, name, ranks, self.rank, self._backend, self._timeout_s, self.stamps, donors, self.address(ranks)
            )
            donors = [donor for donor in donors if donor.built is not group.backend]
            group.lag_s = self.lag_s
            yield ranks, group

    def adopt(self, epoch: int, other: Communicator) -> None:
        """Enter generation `epoch` with the groups that `other` has built for it; those of before go.

        Raises:
            CommError: one of them is not clean, or the generation was aborted; call `reconfigure` with a higher epoch.
        """
        self.stamps.reset()
        with self._changed:
            self._epoch = epoch
            stale, (self._groups, other._groups) = list(self._groups.values()), (other._groups, {})
            for group in self._groups.values():
                group.stamp_with(self.stamps)
                group.frozen = self._aborted_epoch >= epoch
            torn = [group.name for group in self._groups.values() if not group.clean]
        for group in stale:
            group.close(self._groups.values())
        self.check()
        if torn:
            raise CommError(f"group {torn[0]} broke before it was needed")

    def spawn(self, mark: str, timeout_s: float = 0.0) -> Communicator:
        """Another one over the same store, with stamps of its own, whose groups can be adopted.

        Args:
            timeout_s: of its groups' operations; 0: as here.
        """
        other = Communicator(self._store, self.rank, self._backend, timeout_s or self._timeout_s, mark)
        other.lag_s, other.address = self.lag_s, self.address
        return other

    def group(self, ranks: Sequence[int]) -> Group:
        return self._groups[tuple(ranks)]

    def abort(self, epoch: int) -> None:
        """From any thread: make every blocked or later operation of generations up to `epoch` raise `CommError`.

        Groups with nothing under way keep their connections and may be carried over by `reconfigure`.
        """
        with self._changed:
            self._aborted_epoch = max(self._aborted_epoch, epoch)
            groups = list(self._groups.values()) if self._epoch <= epoch else []
            for group in groups:
                group.freeze()
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `CommError` if this generation was aborted."""
        if self._aborted_epoch >= self._epoch:
            raise CommError(f"generation {self._epoch} was aborted")

    def clean(self) -> dict[str, int]:
        """Names of the quiet groups with their operation counts; those that agree on all members are carried over."""
        return {g.name: g.seq for g in self._groups.values() if g.clean}

    @property
    def groups(self) -> tuple[Group, ...]:
        return tuple(self._groups.values())

    def close(self) -> None:
        """Release every group; an `abort` from another thread finds nothing left to touch."""
        with self._changed:
            groups, self._groups = self._groups, {}
        for group in groups.values():
            group.close()
        settle()
