"""Flows on parallel paths: as good as any placement on small networks, and few moves when links die."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from trainsys.comm.traffic import Flow, LeafSpine, busiest, hashed, place, replan

NETWORK = LeafSpine(num_hosts=8, hosts_per_leaf=2, spines=2, host_gbps=1.0, spine_gbps=1.0)


def some_flows(seed: int, count: int) -> list[Flow]:
    draw = Random(seed)
    pairs = [draw.sample(range(NETWORK.num_hosts), 2) for _ in range(count)]
    return [Flow(a, b, draw.choice([1e9, 2e9, 3e9, 5e9])) for a, b in pairs]


@pytest.mark.parametrize("seed", range(12))
def test_small_placements_are_near_the_best(seed: int) -> None:
    flows = some_flows(seed, 8)
    paths = [NETWORK.paths(flow) for flow in flows]
    best = min(busiest(p, flows, paths, NETWORK.gbps) for p in product(*map(range, map(len, paths))))
    found = busiest(place(flows, paths, NETWORK.gbps), flows, paths, NETWORK.gbps)
    assert best <= found * (1 + 1e-9)
    assert found <= best * (1 + 1e-9), "exact on all of these"


def test_equal_flows_between_leaves_never_meet() -> None:
    """A ring over all hosts of a network that blocks nothing: hashing collides, a plan does not."""
    network = LeafSpine(64, 8, 8, 1.0, 1.0)
    flows = [Flow(host, (host + 8) % 64, 1e9) for host in range(64)]
    paths = [network.paths(flow) for flow in flows]
    assert busiest(place(flows, paths, network.gbps), flows, paths, network.gbps) == pytest.approx(1.0)
    assert min(busiest(hashed(paths, seed), flows, paths, network.gbps) for seed in range(10)) >= 2.0


def test_only_flows_of_a_dead_link_move() -> None:
    network = LeafSpine(32, 8, 4, 1.0, 2.0)
    flows = [Flow(host, (host + 8) % 32, 1e9) for host in range(32)]
    paths = [network.paths(flow) for flow in flows]
    before = place(flows, paths, network.gbps)
    dead = [(network.leaf(0), network.spine(1)), (network.spine(1), network.leaf(0))]
    after = replan(before, flows, paths, network.gbps, dead)
    hit = [flow for flow in range(32) if set(paths[flow][before[flow]]) & set(dead)]
    assert hit
    assert [flow for flow in range(32) if before[flow] != after[flow]] == hit
    assert not any(set(paths[flow][after[flow]]) & set(dead) for flow in range(32))
    assert busiest(after, flows, paths, network.gbps) == pytest.approx(1.5), "3 links of 2 GB/s for 8 flows"


def test_a_host_cut_off_is_named() -> None:
    flow = Flow(0, 2, 1.0)
    dead = [(NETWORK.leaf(0), NETWORK.spine(s)) for s in range(2)]
    with pytest.raises(ValueError, match="no path is left from host 0 to host 2"):
        replan((0,), [flow], [NETWORK.paths(flow)], NETWORK.gbps, dead)
