"""Nodes, links, and what holds up a group."""

from dataclasses import replace

import pytest

from trainsys.comm.topology import Link, Topology
from trainsys.config import ClusterConfig, LinkConfig, load

CLUSTER = ClusterConfig(
    name="pair", nodes=2, ranks_per_node=3, intra_node=LinkConfig(100.0, 1e-6), inter_node=LinkConfig(10.0, 5e-6)
)


def test_ranks_are_numbered_node_by_node():
    topology = Topology.from_config(CLUSTER)
    assert topology.num_ranks == 6
    assert [topology.node_of(rank) for rank in range(6)] == [0, 0, 0, 1, 1, 1]
    assert topology.same_node(0, 2)
    assert not topology.same_node(2, 3)


def test_a_transfer_costs_latency_plus_bytes_over_bandwidth():
    topology = Topology.from_config(CLUSTER)
    assert topology.transfer_s(0, 1, 2e9) == pytest.approx(1e-6 + 0.02)
    assert topology.transfer_s(0, 5, 2e9) == pytest.approx(5e-6 + 0.2)
    assert topology.transfer_s(4, 4, 2e9) == 0.0


@pytest.mark.parametrize(
    ("ranks", "link"),
    [((0, 1, 2), Link(100.0, 1e-6)), ((0, 3), Link(10.0, 5e-6)), ((1, 2, 3), Link(10.0, 5e-6)), ((4,), None)],
)
def test_the_slowest_link_of_a_group(ranks, link):
    assert Topology.from_config(CLUSTER).slowest(ranks) == link


def test_slowest_agrees_with_every_pair():
    slow_inside = replace(CLUSTER, intra_node=LinkConfig(5.0, 1e-6))
    for cluster in (CLUSTER, slow_inside):
        topology = Topology.from_config(cluster)
        for group in ((0, 1, 4), (2, 3), (0, 1, 2, 3, 4, 5), (3, 5)):
            pairs = [topology.link(a, b) for a in group for b in group if a != b]
            worst = Link(min(p.gbps for p in pairs), max(p.latency_s for p in pairs))
            assert topology.slowest(group) == worst


def test_a_ring_through_whole_nodes_uses_every_link_of_them():
    cluster = replace(CLUSTER, nodes=2, ranks_per_node=4)
    topology = Topology.from_config(cluster)
    one, inside = cluster.inter_node.gbps, cluster.intra_node.gbps
    assert topology.ring((0, 4)).gbps == one
    assert topology.ring((0, 1, 4, 5)).gbps == min(2 * one, inside)
    assert topology.ring((0, 1, 4)).gbps == min(one, inside)
    assert topology.ring((0, 1)) == topology.slowest((0, 1))
    assert topology.ring((3,)) is None


def test_fewer_ranks_than_the_cluster_has():
    topology = Topology.from_config(CLUSTER, 4)
    assert (topology.num_ranks, topology.nodes) == (4, 2)
    assert "1 node × 3 + 1 node × 1" in topology.describe()
    assert Topology.from_config(CLUSTER, 3).nodes == 1


@pytest.mark.parametrize(
    ("cluster", "num_ranks", "message"),
    [
        (CLUSTER, 7, "7 ranks asked of cluster pair, which has 6"),
        (CLUSTER, 0, "0 ranks"),
        (replace(CLUSTER, nodes=0), None, "cluster.nodes=0"),
        (replace(CLUSTER, inter_node=LinkConfig(0.0, 0.0)), None, "cluster.inter_node: gbps=0"),
    ],
)
def test_impossible_clusters_are_refused(cluster, num_ranks, message):
    with pytest.raises(ValueError, match=message):
        Topology.from_config(cluster, num_ranks)


@pytest.mark.parametrize(
    ("name", "ranks"), [("local-4", 4), ("local-6", 6), ("dgx-a100-2", 16), ("dgx-h100-4", 32), ("mixed-h100-a100", 32)]
)
def test_the_cluster_files_load(name, ranks):
    cluster = load([f"configs/cluster/{name}.yaml"]).cluster
    assert cluster.name == name
    assert Topology.from_config(cluster).num_ranks == ranks
