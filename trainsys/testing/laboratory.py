"""What laboratories of network namespaces have in common: a process for each node, some of which are ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from trainsys.testing import RankPool
from trainsys.testing.namespaces import SEGMENT, into_own_network, ip, missing, over_network

MTU = 9000
HEADERS = 66  # bytes of a packet that are no payload: Ethernet 14, IP 20, TCP 32 with its time stamps
PAYLOAD = (MTU + 14 - HEADERS) / (MTU + 14)  # of a rate, when packets are full
DEVICE = f"mtu {MTU} gso_max_size {SEGMENT}"


class Laboratory(ABC):
    """Ranks on shaped links; use it in a ``with`` statement.

    Args:
        num_ranks: the first nodes.
        num_nodes: ranks and switches.
        settings: of every network, below ``/proc/sys/net/ipv4``.

    Attributes:
        pids: of the nodes' processes, to which the namespaces belong.

    Raises:
        RuntimeError: there can be none here (`namespaces.missing` says so beforehand), or a command failed.
    """

    def __init__(self, num_ranks: int, num_nodes: int, settings: Mapping[str, str] | None = None) -> None:
        why = missing()
        if why:
            raise RuntimeError(f"no network laboratory: {why}")
        self._num_ranks, self.num_nodes, self._settings = num_ranks, num_nodes, settings
        self._pool = RankPool()
        self.pids: list[int] = []

    def __enter__(self) -> Self:
        try:
            self.pids = self._pool.run(into_own_network, self.num_nodes, self._settings)
            self._lay()
        except BaseException:
            self._pool.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    @property
    def payload(self) -> float:
        """The part of a link's rate that messages get; headers take the rest."""
        return PAYLOAD

    def run(self, body: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """``body(rank, world_size, store, *args)`` on every rank, as `RankPool.run`, with gloo on the shaped links.

        An error of a rank ends the laboratory with all its processes.
        """
        return self._pool.run(over_network, self._num_ranks, body, args, timeout_s=timeout_s)

    @abstractmethod
    def _lay(self) -> None:
        """Connect the namespaces of `pids`."""

    def _connect(self, pairs: Sequence[tuple[int, int]], home: Callable[[int], Iterable[str]]) -> None:
        """A veth pair for each of `pairs` (lower node first), whose ends are ``toNODE``.

        Args:
            home: commands of ip for what a node has of its own.
        """
        for node, pid in enumerate(self.pids):
            own = [f"link add name to{b} type veth peer name to{a} netns {self.pids[b]}" for a, b in pairs if a == node]
            ip(pid, ["link set lo up", *home(node), *own])
        for node, pid in enumerate(self.pids):
            ends = [f"to{a + b - node}" for a, b in pairs if node in (a, b)]
            ip(pid, [command for end in ends for command in (f"link set {end} {DEVICE}", f"link set {end} up")])
