"""Wires as namespaces: each has its rate, what shares one shares it evenly, every byte is counted where it went."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.testing.wires_bodies import best_s, fails, transfers
from trainsys.comm.wires import two_level
from trainsys.comm.wires_file import wires_of
from trainsys.testing import RankError
from trainsys.testing.wires_lab import WiresLab, holds_up_nothing, missing

needed = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
TWO_LEVEL = two_level(2, 2, 0.04, 0.005)
ACROSS = ((0, 2), (1, 3), (2, 1))
BYTES = 250_000


@pytest.fixture(scope="module")
def lab() -> Iterator[WiresLab]:
    with WiresLab(TWO_LEVEL) as found:
        yield found


@needed
def test_an_uplink_is_shared(lab: WiresLab) -> None:
    alone = best_s(lab.run(transfers, ((0, 2),), BYTES, 1))
    shared = best_s(lab.run(transfers, ACROSS, BYTES, 1))
    inside = best_s(lab.run(transfers, ((0, 1), (3, 2)), 4 * BYTES, 1))
    assert 0.9 < alone / (BYTES / 0.005e9) < 3  # others may keep this machine busy: far above, never below
    assert 0.9 < shared / (2 * BYTES / 0.005e9) < 3, "two of them leave one host"
    assert 0.9 < inside / (4 * BYTES / 0.04e9) < 4


@needed
def test_bytes_are_counted_on_every_edge(lab: WiresLab) -> None:
    lab.mark()
    lab.run(transfers, ACROSS, BYTES, 1)
    counted = lab.counters()
    expected = Counter(edge for pair in ACROSS for edge in TWO_LEVEL.routes[pair])
    assert set(counted) == set(TWO_LEVEL.links)
    for edge, count in counted.items():
        assert abs(count - expected[edge] * 2 * BYTES) < 0.02 * 2 * BYTES, (edge, count)


@needed
def test_directions_differ_and_ways_have_switches() -> None:
    links = [[0, "left", 0.01], ["left", "right", 0.02, 0.005], ["right", 1, 0.02]]
    with WiresLab(wires_of({"kind": "graph", "ranks": 2, "links": links})) as lab:
        forth = best_s(lab.run(transfers, ((0, 1),), BYTES, 1))
        back = best_s(lab.run(transfers, ((1, 0),), BYTES, 1))
    assert 0.9 < forth / (BYTES / 0.01e9) < 2.5
    assert 0.9 < back / (BYTES / 0.005e9) < 2.5


@needed
def test_wires_leave_nothing_behind() -> None:
    before = set(os.listdir("/sys/class/net"))
    with WiresLab(two_level(1, 2, 0.1, 0.1)) as failing:
        processes = [process for process, _ in failing._pool._workers]
        with pytest.raises(RankError, match="on purpose"):
            failing.run(fails)
    assert len(processes) == 4, "two ranks and two switches"
    assert not any(process.is_alive() for process in processes)
    assert set(os.listdir("/sys/class/net")) == before


def test_what_holds_up_nothing() -> None:
    nothing = {edge for edge in TWO_LEVEL.links if holds_up_nothing(TWO_LEVEL, edge)}
    inner = {(0, 4), (1, 4), (2, 5), (3, 5)}
    after_equal_ones = {(6, 4), (6, 5)}
    assert nothing == inner | {(b, a) for a, b in inner} | after_equal_ones
    three = two_level(3, 1, 1.0, 1.0)
    assert {edge for edge in three.links if not holds_up_nothing(three, edge)} == {(0, 3), (1, 4), (2, 5)} | {
        (3, 0), (4, 1), (5, 2)
    }, "equal ones in a row count once"  # fmt: skip
