"""EMULATED wires, for machines without namespaces: real processes, real gloo and real bytes, but all over loopback.

One process lets the bytes pass when wires would have (`wires_relay`). Whatever uses the store that a body is given goes
over these wires: groups, the backend's own collectives, several groups at once. Wires have their latency too, which a
`WiresLab` cannot give them. Needs no privileges. Bytes are copied twice more than on namespaces, so that all links
together should have at most 300 MB/s on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainsys.comm.wires import Edge, Wires
from trainsys.elastic.forks import forkserver
from trainsys.testing import RankPool
from trainsys.testing.laboratory import PAYLOAD


class EmulatedWiresLab:
    """Ranks on emulated wires, as a `WiresLab`; use it in a ``with`` statement.

    Args:
        wires: of at most 127 ranks. Rates are less what headers would take, as there.
    """

    emulated = True
    payload = PAYLOAD

    def __init__(self, wires: Wires) -> None:
        assert 1 <= wires.num_ranks <= 127, wires.num_ranks
        self.wires = wires
        self._pool = RankPool()
        self._before: dict[Edge, int] = {}

    def __enter__(self) -> EmulatedWiresLab:
        from trainsys.testing.wires_relay import serve

        context = forkserver()
        self._relay, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(self.wires, PAYLOAD, theirs), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._port: int = self._relay.recv()
        except EOFError:
            self.__exit__()
            raise RuntimeError("no emulated wires: the relay did not start") from None
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.close()
        self._relay.close()
        self._process.kill()
        self._process.join()

    def run(self, body: Callable[..., Any], *args: Any, timeout_s: float = 120.0) -> list[Any]:
        """``body(rank, world_size, store, *args)`` on every rank, as `RankPool.run`, with gloo on these wires.

        After an error of a rank the next call has new processes.
        """
        return self._pool.run(_on_emulated_wires, self.wires.num_ranks, self._port, body, args, timeout_s=timeout_s)

    def mark(self) -> None:
        """Count from now on."""
        self._before = self._counted()

    def counters(self) -> dict[Edge, int]:
        """Bytes that went over each edge since the last `mark`, or the beginning."""
        return {edge: count - self._before.get(edge, 0) for edge, count in self._counted().items()}

    def _counted(self) -> dict[Edge, int]:
        try:
            self._relay.send("counters")
            found: dict[Edge, int] = self._relay.recv()
        except (EOFError, OSError):
            raise RuntimeError("no emulated wires: the relay has ended") from None
        return found


def _on_emulated_wires(
    rank: int, world_size: int, store: Any, port: int, body: Callable[..., Any], args: tuple[Any, ...]
) -> Any:
    from trainsys.testing.relayed_store import RelayedStore

    return body(rank, world_size, RelayedStore(store, rank, port), *args)
