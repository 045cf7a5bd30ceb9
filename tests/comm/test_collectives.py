"""Collectives over datapaths: exact for any method, number and type, the same bits each time, and which is chosen."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from tests.comm.collective_bodies import left_alone, repeated, wrong
from trainsys.comm.collectives import Collectives
from trainsys.comm.datapath_choice import Candidates, nearly_least
from trainsys.comm.datapaths import DATAPATHS
from trainsys.comm.topology import Link
from trainsys.comm.wires import Wires, mesh, star, two_level
from trainsys.testing import RankPool

LOPSIDED = Wires(
    "lopsided", 3, {(a, b): Link(0.01 * (1 + a + 2 * b), 0.0) for a in range(3) for b in range(3) if a != b}, (0, 0, 0)
)
SIZES = ((1, torch.float32), (7, torch.bfloat16), (101, torch.int64), (5003, torch.float64))


def cases(*some: Wires) -> list[tuple[Wires, str]]:
    found = [(wires, method) for wires in some for method in (*Candidates(wires).methods, "auto")]
    return [one for one in found if one[0].num_ranks < 8 or one[1] not in ("synthesis", "auto")]  # takes each a second


@pytest.mark.parametrize(
    ("wires", "sizes"),
    [
        ((mesh(2, 1.0),), SIZES),
        ((mesh(3, 1.0), LOPSIDED), SIZES),
        ((two_level(2, 2, 1.0, 0.1), mesh(4, 1.0)), SIZES),
        ((mesh(5, 1.0),), SIZES[:3]),
        ((two_level(4, 2, 1.0, 0.1),), SIZES[2:3]),
    ],
    ids=lambda value: value[0].name if isinstance(value[0], Wires) else "",
)
def test_every_collective_is_exact(
    ranks: RankPool, wires: tuple[Wires, ...], sizes: tuple[tuple[int, torch.dtype], ...]
) -> None:
    assert ranks.run(wrong, wires[0].num_ranks, cases(*wires), sizes) == [[]] * wires[0].num_ranks


def test_every_datapath_is_among_the_cases() -> None:
    assert set(Candidates(two_level(2, 2, 1.0, 0.1)).methods) == set(DATAPATHS)


def test_sums_have_the_same_bits_each_time(ranks: RankPool) -> None:
    wires = two_level(2, 2, 1.0, 0.1)
    results = ranks.run(repeated, 4, wires, Candidates(wires).methods, 1013)
    for method in Candidates(wires).methods:
        first = results[0][method][0]
        for of_rank in results:
            assert all(torch.equal(first, again) for again in of_rank[method]), method


@pytest.mark.parametrize(
    ("collective", "said"),
    [
        ("all_gather", r"^ring, step \d: chunk \d (from|to) rank \d: "),
        ("all_reduce", r"^ring backwards, step \d: chunk \d (from|to) rank \d: "),
        ("all_to_all", r"^all_to_all: (from|to) rank \d: "),
        ("all_scan", r"^all_scan, block \d+: (from|to) rank \d: "),
    ],
)
def test_who_was_waited_for_is_said(ranks: RankPool, collective: str, said: str) -> None:
    last = ranks.run(left_alone, 3, mesh(3, 1.0), collective)[1]
    assert re.search(said, last), last


def test_the_choice_follows_the_wires() -> None:
    assert Candidates(two_level(2, 2, 1.0, 0.02)).choose("all_gather", 10_000_000) in ("two_level", "synthesis")
    assert Candidates(mesh(4, 0.02)).choose("all_gather", 10_000_000) == "direct"
    assert Candidates(mesh(4, 0.02)).choose("all_reduce", 10_000_000) == "sliced", "sums are made meanwhile"
    paths = Candidates(LOPSIDED)
    assert Candidates(LOPSIDED.turned()).choose("all_gather", 10_000) == paths.choose("reduce_scatter", 10_000)
    both = paths.seconds("all_gather", "ring", 1e6) + paths.seconds("reduce_scatter", "ring", 1e6)
    assert paths.seconds("all_reduce", "ring", 1e6) == pytest.approx(both)


def test_a_reduce_scatter_is_made_for_the_turned_wires() -> None:
    """Rank 0's way to the switch is slow, its way from there is not: turned, others must spare it."""
    links = dict(star(4, 1.0).links) | {(0, 4): Link(0.1, 0.0)}
    paths = Candidates(Wires("ways in", 4, links, (0,) * 4))
    turned, plain = paths.turned("synthesis"), paths.there("synthesis")
    assert turned.sends.tolist() != plain.sends.tolist()
    (back,) = paths.halves("reduce_scatter", "synthesis")
    assert back.sends.tolist() == turned.backwards().sends.tolist()


def test_equal_predictions_are_told_apart() -> None:
    steps = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 1.001}
    for seconds, relays, best in (
        ({"a": 1.0, "b": 1.002, "c": 1.1}, {}, "b"),
        ({"a": 1.0, "b": 1.02, "c": 1.1}, {}, "a"),
        ({"b": 1.0, "d": 1.0}, {"b": 4, "d": 0}, "d"),
        ({"b": 1.0, "d": 1.0}, {}, "b"),
    ):
        assert nearly_least(seconds, seconds.__getitem__, steps.__getitem__, lambda one: relays.get(one, 0)) == best


class _Alone:
    rank = 0


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="no datapath 'rings'; there are ring"):
        Collectives(_Alone(), [0, 1], mesh(2, 1.0), "rings")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs 2 or more hosts"):
        Collectives(_Alone(), [0, 1], mesh(2, 1.0), "rail")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wires of 2 ranks cannot serve 3 members"):
        Collectives(_Alone(), [0, 1, 2], mesh(2, 1.0))  # type: ignore[arg-type]
    apart = Wires("apart", 2, {}, (0, 1))
    with pytest.raises(ValueError, match="no datapath suits apart"):
        Candidates(apart).choose("all_gather", 8)


def test_alone_nothing_is_sent() -> None:
    ours, own = Collectives(_Alone(), [0], mesh(1, 1.0)), torch.arange(3)  # type: ignore[arg-type]
    for found in (ours.all_gather(own), ours.reduce_scatter(own), ours.all_reduce(own)):
        assert torch.equal(found, own)
        assert found.data_ptr() != own.data_ptr()


def test_the_choice_imports_no_torch() -> None:
    program = "import sys, trainsys.comm.datapath_choice; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
