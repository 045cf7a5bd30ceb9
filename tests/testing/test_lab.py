"""Shaped links: each direction has its own rate, other nodes share an adapter, and nothing is left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange
from trainsys.comm.topology import Topology
from trainsys.config import ClusterConfig, LinksConfig
from trainsys.testing import RankError
from trainsys.testing.lab import Lab, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
BYTES = 400_000
RATES = ((0, 0.02, 0.04), (0.005, 0, 0.04), (0.04, 0.04, 0))  # GB/s
Pairs = tuple[tuple[int, int], ...]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    cluster = replace(ClusterConfig(), nodes=3, ranks_per_node=1, links=LinksConfig(RATES))
    with Lab(Topology.from_config(cluster)) as found:
        yield found


def transfers(rank: int, world_size: int, store: Any, rounds: tuple[Pairs, ...]) -> list[float]:
    """Seconds of each round, in which every (source, destination) carries `BYTES`; the first time is warm-up."""
    comm, members, seconds = Communicator(store, rank), tuple(range(world_size)), []
    comm.reconfigure(0, [members])
    group, data = comm.group(members), torch.zeros(BYTES // 4)
    for pairs in (rounds[0], *rounds):
        group.backend.barrier().wait()
        start = time.perf_counter()
        sends = [(b, data, 0) for a, b in pairs if a == rank]
        exchange(group, sends, [(a, torch.empty_like(data), 0) for a, b in pairs if b == rank])
        seconds.append(time.perf_counter() - start)
    comm.close()
    return seconds[1:]


def fails(rank: int, world_size: int, store: Any) -> None:
    raise ArithmeticError("on purpose")


def test_links_have_their_rates(lab: Lab) -> None:
    rounds: tuple[Pairs, ...] = (((0, 1),), ((1, 0),), ((0, 2), (1, 2)))
    forth, back, into_one = map(max, zip(*lab.run(transfers, rounds), strict=True))
    assert 0.8 < forth / (BYTES / 0.02e9) < 4  # others may keep this machine busy: far above, never below
    assert 0.8 < back / (BYTES / 0.005e9) < 4
    assert into_one > 0.8 * 2 * BYTES / 0.04e9, "two senders share what the receiver has"


def test_nothing_is_left_behind() -> None:
    before = set(os.listdir("/sys/class/net"))
    topology = Topology.from_config(replace(ClusterConfig(), nodes=1, ranks_per_node=2))
    with Lab(topology) as failing:
        processes = [process for process, _ in failing._pool._workers]
        with pytest.raises(RankError, match="on purpose"):
            failing.run(fails)
    assert len(processes) == 3
    assert not any(process.is_alive() for process in processes)
    assert set(os.listdir("/sys/class/net")) == before
