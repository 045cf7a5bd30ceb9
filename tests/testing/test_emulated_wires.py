"""Emulated wires: rates, shares and latencies as wires have them, whatever goes over them, without privileges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.testing.wires_bodies import best_s, fails, native, owned, transfers
from trainsys.comm.wires import mesh, two_level
from trainsys.testing import RankError
from trainsys.testing.emulated_wires import EmulatedWiresLab

WIRES = two_level(2, 2, 0.04, 0.005)
ACROSS = ((0, 2), (1, 3), (2, 1))
BYTES = 250_000


@pytest.fixture(scope="module")
def lab() -> Iterator[EmulatedWiresLab]:
    with EmulatedWiresLab(WIRES) as found:
        yield found


def test_an_emulated_uplink_is_shared(lab: EmulatedWiresLab) -> None:
    lab.mark()
    shared = best_s(lab.run(transfers, ACROSS, BYTES, 1))
    counted = lab.counters()
    expected = Counter(edge for pair in ACROSS for edge in WIRES.routes[pair])
    for edge, count in counted.items():
        assert abs(count - expected[edge] * 2 * BYTES) < 0.02 * 2 * BYTES, (edge, count)
    inside = best_s(lab.run(transfers, ((0, 1), (3, 2)), 4 * BYTES, 1))
    assert 0.95 < shared / (2 * BYTES / 0.005e9) < 3, "two of them leave one host"
    assert 0.95 < inside / (4 * BYTES / 0.04e9) < 4


def test_a_group_knows_its_connections_over_the_relay(lab: EmulatedWiresLab) -> None:
    assert lab.run(owned) == [3] * 4


def test_the_backend_s_own_collectives_go_over_emulated_wires(lab: EmulatedWiresLab) -> None:
    spans = lab.run(native, 200_000)
    seconds = max(end for _, end in spans) - min(start for start, _ in spans)
    assert seconds > 200_000 / 0.005e9, "an all-reduce brings each host half of the sum twice at least"


def test_emulated_latency() -> None:
    with EmulatedWiresLab(mesh(2, 1.0, latency_s=0.05)) as lab:
        seconds = best_s(lab.run(transfers, ((0, 1),), 8, 2))
    assert 0.1 <= seconds < 0.4, "a receiver says that it is ready, then the message comes"


def test_after_an_error_the_wires_are_still_there(lab: EmulatedWiresLab) -> None:
    with pytest.raises(RankError, match="on purpose"):
        lab.run(fails)
    assert best_s(lab.run(transfers, ((0, 1),), 1000, 1)) < 5.0
