"""A network of two spines: a group's address is its spine, flows that meet wait, a link's end moves one flow."""

from __future__ import annotations

import pytest

from benchmarks._traffic_lab import measure
from benchmarks.traffic import ratio_where_met, simulate
from trainsys.comm.traffic import Flow, LeafSpine
from trainsys.testing.spine_lab import missing

NETWORK = LeafSpine(num_hosts=4, hosts_per_leaf=2, spines=2, host_gbps=1.0, spine_gbps=0.02)


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
def test_flows_take_the_spine_of_their_plan() -> None:
    found = measure(NETWORK, [Flow(0, 2, 4e5), Flow(1, 3, 4e5)], trials=1)
    assert [trial["met"] for trial in found["placed"]] == [1], "each uplink carried one flow's bytes"
    for trial in found["placed"] + found["hashed"]:
        assert trial["met"] in (1, 2)
        assert trial["slowest_s"] > 0.8 * found["alone_s"] * trial["met"], "no faster than its link"
    assert found["cut"]["moved"] == 1
    assert 0 <= found["cut"]["told"] <= found["cut"]["planned"] <= found["cut"]["carries"] < 10.0


def test_simulated_placements_beat_hashing() -> None:
    row = simulate(32, "ring", seeds=2)
    assert row["placed_s"] == pytest.approx(0.02), "1 GB at 50 GB/s, alone on every link"
    assert min(row["hashed_s"]) > 1.5 * row["placed_s"]
    assert row["moved"] == 2, "a link ends in both directions, and one flow took each"


def test_ratio_counts_collisions_only() -> None:
    lab = {"placed": [{"slowest_s": 1.0, "met": 1}], "hashed": [{"slowest_s": 1.1, "met": 1}]}
    assert ratio_where_met(lab) is None
    lab["hashed"].append({"slowest_s": 2.0, "met": 2})
    assert ratio_where_met(lab) == 2.0
