"""Emulated links: a group whose messages leave after the time that a link would take, one after the other per peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from trainsys.comm.group import Expected, Group


class SlowLinks:
    """What an executor needs of a `Group`.

    Args:
        send_s: peer's global rank -> seconds of a message to it.
    """

    def __init__(self, group: Group, send_s: Callable[[int], float]) -> None:
        self._group, self._send_s = group, send_s
        self._links: dict[int, ThreadPoolExecutor] = {}

    def irecv(self, tensor: Tensor, peer: int, tag: int) -> Any:
        return self._group.irecv(tensor, peer, tag)

    def isend(self, tensor: Tensor, peer: int, tag: int) -> Future[Any]:
        """Begins when the messages before it have left."""
        link = self._links.setdefault(peer, ThreadPoolExecutor(1))
        return link.submit(self._leave, tensor, peer, tag)

    def wait_all(self, works: Sequence[Any]) -> None:
        self._group.wait_all([work.result() if isinstance(work, Future) else work for work in works])

    def settle(self, works: Sequence[Any]) -> None:
        self.wait_all(works)

    def expect(self, work: Any) -> Expected:
        return self._group.expect(work)

    def take(self, expected: Expected) -> None:
        self._group.take(expected)

    def _leave(self, tensor: Tensor, peer: int, tag: int) -> Any:
        time.sleep(self._send_s(peer))
        return self._group.isend(tensor, peer, tag)
