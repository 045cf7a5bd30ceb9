"""Times: exact where they can be said by hand, near the bound where a datapath suits the wires, and never under it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trainsys.comm import datapath_time as time
from trainsys.comm.datapath import Datapath, Send
from trainsys.comm.datapath_bound import bound_s
from trainsys.comm.datapath_check import check
from trainsys.comm.datapaths import DATAPATHS
from trainsys.comm.fluid import Message, play
from trainsys.comm.scan_time import all_scan_s, best_blocks
from trainsys.comm.topology import Link
from trainsys.comm.wires import Wires, mesh, star, two_level

MB = 1e6


def test_messages_of_a_pair_queue_and_a_relay_waits() -> None:
    wires = mesh(3, 0.001, latency_s=0.25)  # 1 MB/s
    sends = [Send(0, 0, 0, 1), Send(1, 0, 1, 2)]
    path = Datapath.of("by hand", 3, 1, sends)
    assert time.seconds(path, wires, MB, alpha_s=0.1) == pytest.approx(2 * (0.1 + 1.0 + 0.25))
    queue = Datapath.of("by hand", 3, 2, [Send(0, 0, 0, 1), Send(0, 1, 0, 1), Send(0, 2, 1, 0)])
    assert time.seconds(queue, wires, 2 * MB, alpha_s=0.1) == pytest.approx(2 * 1.1 + 0.25)


def test_who_shares_a_wire_gets_a_fair_share() -> None:
    wires = star(3, 0.001)
    path = Datapath.of("by hand", 3, 1, [Send(0, 0, 0, 2), Send(0, 1, 1, 2), Send(0, 2, 2, 0)])
    assert time.seconds(path, wires, MB, alpha_s=0) == pytest.approx(2.0)
    slow = replace(wires, links={**wires.links, (0, 3): Link(0.00025, 0.0)})
    assert time.seconds(path, slow, MB, alpha_s=0) == pytest.approx(4.0)  # the other one gets what is left


def test_a_crowded_wire_gives_less() -> None:
    wires = star(4, 0.001)
    direct, ring = DATAPATHS["direct"](wires, 0), DATAPATHS["ring"](wires, 0)
    assert time.seconds(direct, wires, MB, 0, crowd=0.75) == pytest.approx(4.0)
    assert time.seconds(ring, wires, MB, 0, crowd=0.75) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("name", "wires", "most"),
    [
        ("direct", mesh(4, 0.025), 1.01),
        ("sliced", mesh(6, 0.025), 1.01),
        ("k_ring", mesh(5, 0.025), 1.01),
        ("k_ring", mesh(8, 0.025), 1.01),
        ("ring", star(4, 0.025), 1.01),
        ("two_level", two_level(2, 2, 0.05, 0.0075), 1.03),
        ("two_level", two_level(2, 4, 0.05, 0.0075, 2), 1.03),
        ("hierarchical", two_level(4, 2, 0.05, 0.0075), 1.03),
        ("hierarchical", two_level(3, 4, 0.05, 0.02, 2), 1.03),
    ],
)
def test_a_suitable_datapath_is_near_the_bound(name: str, wires: Wires, most: float) -> None:
    path = DATAPATHS[name](wires, 0)
    nbytes = 4 * MB
    assert 1.0 - 1e-9 <= time.seconds(path, wires, nbytes) / bound_s(wires, nbytes) < most
    back = time.seconds(path.backwards(), wires, nbytes) / bound_s(wires, nbytes, "reduce_scatter")
    assert 1.0 - 1e-9 <= back < most
    assert time.seconds_by_steps(path, wires, nbytes) >= time.seconds(path, wires, nbytes) * (1 - 1e-9)
    both = time.seconds(path.backwards(), wires, nbytes) + time.seconds(path, wires, nbytes)
    assert 1.0 - 1e-9 <= both / bound_s(wires, nbytes, "all_reduce") < most


@pytest.mark.parametrize("name", DATAPATHS)
def test_nothing_is_faster_than_the_bound(name: str) -> None:
    wires = two_level(2, 4, 0.05, 0.0075)
    path = DATAPATHS[name](wires, 0)
    assert time.seconds(path, wires, MB) >= bound_s(wires, MB)


def test_hosts_of_different_sizes() -> None:
    links = {(a, b): Link(0.05, 0.0) for host in ((0, 1, 2), (3, 4)) for a in host for b in host if a != b}
    links |= {edge: Link(0.05, 0.0) for r in range(5) for edge in ((r, 5 + r // 3), (5 + r // 3, r))}
    links |= {edge: Link(0.0075, 0.0) for nic in (5, 6) for edge in ((nic, 7), (7, nic))}
    wires = Wires("3 and 2", 5, links, (0, 0, 0, 1, 1))
    path = DATAPATHS["two_level"](wires, 0)
    check(path)
    assert bound_s(wires, MB) == pytest.approx(0.4)
    assert time.seconds(path, wires, MB) < 1.04 * bound_s(wires, MB)
    with pytest.raises(ValueError, match="equally many ranks"):
        DATAPATHS["rail"](wires, 0)


def test_bounds_by_hand() -> None:
    assert bound_s(mesh(4, 0.001), MB) == pytest.approx(1.0)
    assert bound_s(star(4, 0.001), MB) == pytest.approx(3.0)
    assert bound_s(two_level(2, 2, 0.05, 0.001), MB) == pytest.approx(2.0)
    assert bound_s(two_level(8, 4, 0.05, 0.001), MB) == pytest.approx(28.0)  # more nodes than all sets are taken of
    out = {(0, 1): Link(0.001, 0.0), (1, 0): Link(0.002, 0.0)}
    one_way = Wires("two", 2, out, (0, 0))
    assert bound_s(one_way, MB) == bound_s(one_way, MB, "reduce_scatter") == pytest.approx(1.0)
    with pytest.raises(ValueError, match="collective='gossip'"):
        bound_s(one_way, MB, "gossip")


def test_bytes_of_edges_add_up() -> None:
    wires = two_level(2, 2, 0.05, 0.0075)
    found = time.edge_bytes(DATAPATHS["two_level"](wires, 0), wires, MB)
    uplinks = [found[edge] for edge in wires.links if min(edge) >= 4]
    assert uplinks == pytest.approx([2 * MB] * 4)
    assert found[0, 1] == pytest.approx(2 * MB)  # its own, and what it received for its neighbour


def test_all_to_all_meets_the_shared_port() -> None:
    assert time.all_to_all_s(mesh(4, 0.001), MB, alpha_s=0) == pytest.approx(1.0)
    assert time.all_to_all_s(star(4, 0.001), MB, alpha_s=0) == pytest.approx(3.0)
    assert time.all_to_all_s(two_level(2, 2, 1.0, 0.001), MB, alpha_s=0) == pytest.approx(4.0, rel=0.01)


def test_a_chain_in_blocks() -> None:
    assert all_scan_s(4, MB, 0.001, 0.0, 1) == pytest.approx(3.0)
    assert all_scan_s(4, MB, 0.001, 0.0, 100) == pytest.approx(1.02)
    assert all_scan_s(1, MB, 0.001, 1.5e-4, 8) == 0.0
    best = best_blocks(4, 4 * 2**20, 0.0075, 1e-3, 64)
    assert best == pytest.approx((2 * 4 * 2**20 / (1e-3 * 0.0075e9)) ** 0.5, abs=1)


def test_two_thousand_messages() -> None:
    wires = mesh(8, 0.025)
    path = DATAPATHS["sliced"](wires, 40)
    assert time.seconds(path, wires, MB, alpha_s=0) == pytest.approx(bound_s(wires, MB))
    assert len(path.sends) == 2240 and path.sends.dtype == np.int32


def test_a_pair_without_a_way_is_named() -> None:
    wires = mesh(3, 1.0)
    cut = replace(wires, links={edge: link for edge, link in wires.links.items() if edge != (0, 2)})
    path = DATAPATHS["direct"](wires, 0)
    with pytest.raises(ValueError, match="no way from rank 0 to rank 2"):
        time.seconds(path, cut, MB)
    with pytest.raises(ValueError, match="direct needs a way"):
        DATAPATHS["direct"](cut, 0)


@pytest.mark.parametrize("slices", [4, 12])
@pytest.mark.parametrize("turned", [False, True])
def test_both_ways_of_timing_agree_where_nothing_is_shared(slices: int, turned: bool) -> None:
    wires = mesh(4, 0.025, latency_s=1e-3)
    path = DATAPATHS["k_ring"](wires, slices)
    path = path.backwards() if turned else path
    crowded = replace(wires, links={**wires.links, (4, 5): Link(1.0, 0.0)})
    rows = path.sends.tolist()
    arrived: dict[tuple[int, int], list[int]] = {}
    messages = []
    pairs = sorted(wires.routes)
    for i, (_, chunk, src, dst) in enumerate(rows):
        messages.append(Message(pairs.index((src, dst)), MB / slices, tuple(arrived.get((chunk, src), ()))))
        arrived.setdefault((chunk, dst), []).append(i)
    by_events = max(play(messages, [wires.routes[pair] for pair in pairs], crowded.links, 2e-4))
    assert time.seconds(path, wires, MB, alpha_s=2e-4) == pytest.approx(by_events)
