"""A store that brings gloo's connections to a relay: addresses read from it are the relay's.

Gloo publishes where a rank listens under ``…/<position in the group>``: the host's name, a ``sockaddr_storage``, and
the number by which a caller of each position names itself. Of two ranks the one with the greater address calls. Here
the one with the greater position does: to it the other's address is the relay's and its number is a ticket, while the
other sees the greatest address there is, and waits. Where a member of a group says that it listens (`Place.listens`)
is the relay for the same ranks. Everything else in the store passes as it is.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, cast

from torch._C._distributed_c10d import Store

from trainsys.testing.wires_relay import ticket

_KEY = re.compile(r"(.*)/(\d+)")
_LISTENS = "/listens"  # end of a key up to the position
_SIZE = struct.Struct("<Q")
_ADDRESS = 136  # bytes: a sockaddr_storage and a number
_INTERNET = struct.Struct("<H")  # family
_PORT = struct.Struct(">H4s")
_HOME, _GREATEST = bytes((127, 0, 0, 1)), bytes((127, 255, 255, 255))


@dataclass(frozen=True)
class _Said:
    """What a rank says about itself: everything up to the port, port and address, the rest, and numbers of callers."""

    head: bytes
    port: int
    host: bytes
    rest: bytes
    callers: tuple[int, ...]

    @classmethod
    def parse(cls, value: bytes) -> _Said | None:
        """None for what is no such thing."""
        if len(value) < _SIZE.size:
            return None
        at = _SIZE.size + _SIZE.unpack_from(value)[0]
        if len(value) < at + _SIZE.size + _ADDRESS or _SIZE.unpack_from(value, at)[0] != _ADDRESS:
            return None
        start, end = at + _SIZE.size, at + _SIZE.size + _ADDRESS
        if _INTERNET.unpack_from(value, start)[0] != 2 or (len(value) - end) % 8:
            return None
        port, host = _PORT.unpack_from(value, start + 2)
        callers = struct.unpack(f"<{(len(value) - end) // 8}q", value[end:])
        return cls(value[: start + 2], port, host, value[start + 2 + _PORT.size : end], callers)

    def value(self) -> bytes:
        address = self.head + _PORT.pack(self.port, self.host) + self.rest
        return address + struct.pack(f"<{len(self.callers)}q", *self.callers)


class RelayedStore(Store):
    """`store` as seen by global rank `rank` of ranks whose connections go over the relay at `port`."""

    def __init__(self, store: Store, rank: int, port: int) -> None:
        super().__init__()
        self._store, self._rank, self._port = store, rank, port
        self._positions: dict[str, int] = {}  # of this rank in each group
        self._clones: list[Store] = []  # the backend calls them when Python has let go

    def set(self, key: str, value: Any) -> None:
        match = _KEY.fullmatch(key)
        if match and match[1].endswith(_LISTENS):
            self._positions[match[1]] = int(match[2])
        elif match and isinstance(value, bytes) and _Said.parse(value):
            self._positions[match[1]] = int(match[2])
            value += bytes((self._rank,))
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        value, match = self._store.get(key), _KEY.fullmatch(key)
        if match and match[1].endswith(_LISTENS):
            called = int(match[2]) < self._positions.get(match[1], 0)
            return json.dumps([("127.0.0.1", self._port)]).encode() if called else value
        said = _Said.parse(value[:-1]) if match and value else None
        if match is None or said is None or match[1] not in self._positions:
            return value
        position, own = int(match[2]), self._positions[match[1]]
        if position == own:
            return said.value()
        if position > own:
            return replace(said, host=_GREATEST).value()
        number = ticket(self._rank, value[-1], said.port, said.callers[own])
        return replace(said, host=_HOME, port=self._port, callers=(number,) * len(said.callers)).value()

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        keys = list(keys)
        self._store.wait(keys) if timeout is None else self._store.wait(keys, timeout)

    def add(self, key: str, amount: int) -> int:
        return self._store.add(key, amount)

    def check(self, keys: Sequence[str]) -> bool:
        return self._store.check(list(keys))

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(key)

    def compare_set(self, key: str, expected: Any, desired: Any) -> bytes:
        return self._store.compare_set(key, expected, desired)

    def clone(self) -> RelayedStore:
        made = RelayedStore(cast(Any, self._store).clone(), self._rank, self._port)
        self._clones.append(made)
        return made
