"""How a group gets its backend's object: from that of a group which has lost members where it can, else anew.

``reconfigure`` and ``shrink`` have not run here, for torch 2.13 has neither on gloo; they are tested with fakes. What
is taken over belongs to a group that nobody can use any more, so that an attempt which fails costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

from torch._C import _distributed_c10d as c10d
from torch._C._distributed_c10d import Store

from trainsys.comm.backends.backend import Backend, can_be_deferred, capabilities
from trainsys.comm.sockets import End, listening

SHRINK_ABORT = 1  # torch.distributed.SHRINK_ABORT: end what is under way first


@dataclass(frozen=True)
class Donor:
    """What a group leaves behind that has lost members: name, ranks in order, c10d's object, where it listens."""

    name: str
    ranks: tuple[int, ...]
    built: Any
    ends: tuple[End, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a group meets.

    Attributes:
        store: under the group's own prefix.
        uid: the group's name, never used again.
        address: of this host, that peers shall connect to, where it has several.
    """

    store: Store
    uid: str
    ranks: tuple[int, ...]
    index: int
    timeout: timedelta
    address: str = ""

    def tell(self, what: str, value: str) -> list[str]:
        """What every member says to `what`, in their order. Raises RuntimeError."""
        self.store.set(f"{what}/{self.index}", value)
        return self.told(what)

    def told(self, what: str) -> list[str]:
        """What every member has said to `what`, in their order. Raises RuntimeError."""
        keys = [f"{what}/{i}" for i in range(len(self.ranks))]
        if cast(Any, self.store).has_extended_api():  # one round trip
            return [value.decode() for value in self.store.multi_get(keys)]
        return [self.store.get(key).decode() for key in keys]

    def listens(self, ends: Sequence[End]) -> None:
        """Say where this member is going to be connected to."""
        self.store.set(f"listens/{self.index}", json.dumps(ends))

    def listeners(self) -> list[tuple[End, ...]]:
        """Where each member is connected to, in their order, once all are. Raises RuntimeError."""
        return [tuple((str(host), int(port)) for host, port in json.loads(said)) for said in self.told("listens")]


def connect(backend: Backend, place: Place, donors: Sequence[Donor] = ()) -> Any:
    """c10d's object of a new group, by the first way that there is: reconfigure, shrink, build.

    Args:
        donors: of other groups of this rank that nobody uses any more.

    Raises:
        RuntimeError: a member did not come.
    """
    options, ends = listening(lambda: backend.options(place.timeout, place.address))
    if can_be_deferred(options):
        options.enable_reconfigure = True
        return _reconfigured(backend, place, options, ends, donors)
    place.listens(ends)
    shrunk = _shrunk(place, donors) if backend.may_shrink else None
    if shrunk is not None:
        return shrunk
    return backend.build(place.store, place.index, len(place.ranks), options)


def _reconfigured(backend: Backend, place: Place, options: Any, ends: Sequence[End], donors: Sequence[Donor]) -> Any:
    """Members bring what they have, an old object or a new one without members: c10d makes no difference."""
    old = [donor for donor in donors if capabilities(donor.built).reconfigures]
    place.listens(old[0].ends if old else ends)
    built = old[0].built if old else backend.build(place.store, place.index, len(place.ranks), options)
    asked = _reconfigure_options()
    asked.uuid = int.from_bytes(hashlib.sha256(place.uid.encode()).digest()[:8], "big") >> 1
    asked.handles = place.tell("handle", built.get_reconfigure_handle())
    asked.timeout = place.timeout
    built.reconfigure(asked).wait()
    return built


def _reconfigure_options() -> Any:
    """c10d's own, where it has them."""
    return getattr(c10d, "ReconfigureOptions", SimpleNamespace)()


def _shrunk(place: Place, donors: Sequence[Donor]) -> Any:
    """What is left of a larger group that all members were in and hold; None where one of them does not."""
    larger = [d for d in donors if _without(d.ranks, place.ranks) and capabilities(d.built).shrinks]
    names = place.tell("donor", larger[0].name if larger else "")
    if not larger or set(names) != {larger[0].name}:
        return None
    return larger[0].built.shrink(_without(larger[0].ranks, place.ranks), SHRINK_ABORT)


def _without(larger: tuple[int, ...], ranks: tuple[int, ...]) -> list[int]:
    """Positions to leave out of `larger` so that `ranks` is left in this order; none where that cannot be."""
    left_out = [i for i, rank in enumerate(larger) if rank not in ranks]
    return left_out if tuple(rank for rank in larger if rank in ranks) == ranks else []
