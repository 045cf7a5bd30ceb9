"""Links from a matrix: a uniform one answers as declared kinds do, others hop by hop, impossible ones are refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from trainsys.comm.topology import Link, Topology
from trainsys.config import ClusterConfig, LinkConfig, LinksConfig, load, save

CLUSTER = ClusterConfig(
    name="pair", nodes=2, ranks_per_node=3, intra_node=LinkConfig(100.0, 1e-6), inter_node=LinkConfig(10.0, 5e-6)
)
FOUR = replace(CLUSTER, ranks_per_node=2)
ROWS = ((0, 50, 4, 5), (60, 0, 6, 7), (8, 9, 0, 70), (3, 10, 80, 0))  # of FOUR's ranks


def with_links(cluster: ClusterConfig, gbps: object, latency_s: object = ()) -> ClusterConfig:
    return replace(cluster, links=LinksConfig(gbps, latency_s))  # type: ignore[arg-type]


def uniform(cluster: ClusterConfig, per_node: bool) -> ClusterConfig:
    """The same links, spelled out."""
    plain = Topology.from_config(cluster)
    size = cluster.nodes if per_node else plain.num_ranks
    step = plain.num_ranks // size
    links = [[plain.link(a * step, b * step) if a != b else Link(0, 0) for b in range(size)] for a in range(size)]
    return with_links(cluster, [[k.gbps for k in row] for row in links], [[k.latency_s for k in row] for row in links])


@pytest.mark.parametrize("per_node", [True, False])
@pytest.mark.parametrize("cluster", [CLUSTER, replace(CLUSTER, nodes=3, ranks_per_node=2)])
def test_a_uniform_matrix_says_what_the_kinds_say(cluster: ClusterConfig, per_node: bool) -> None:
    plain, measured = Topology.from_config(cluster), Topology.from_config(uniform(cluster, per_node))
    assert plain.regular
    assert not measured.regular
    for size in range(1, 7):
        for ranks in combinations(range(6), size):
            assert measured.slowest(ranks) == plain.slowest(ranks), ranks
            assert measured.ring(ranks) == plain.ring(ranks), ranks
            assert measured.ring(ranks, abreast=False) == plain.ring(ranks, abreast=False), ranks
            assert measured.direct(ranks) == plain.direct(ranks), ranks
    assert measured.link(0, 5) == plain.link(0, 5)
    assert measured.link(1, 0) == plain.link(1, 0)


def test_links_per_rank_differ_both_ways() -> None:
    topology = Topology.from_config(with_links(FOUR, ROWS))
    assert topology.link(1, 3) == Link(7.0, 5e-6)
    assert topology.link(3, 1) == Link(10.0, 5e-6)
    assert topology.link(1, 0) == Link(60.0, 1e-6)
    assert topology.transfer_s(2, 0, 8e9) == pytest.approx(5e-6 + 1.0)
    assert topology.slowest((0, 2, 3)) == Link(3.0, 5e-6)


def test_a_ring_goes_over_its_own_hops_only() -> None:
    topology = Topology.from_config(with_links(FOUR, ROWS))
    assert topology.ring((0, 2)) == Link(4.0, 5e-6)
    assert topology.ring((0, 1)) == Link(50.0, 1e-6)
    # 0 -> 2 and 1 -> 3 at once, back 2 -> 0 and 3 -> 1: twice the slower of each
    assert topology.ring((0, 1, 2, 3)) == Link(2 * 4.0, 5e-6)
    assert topology.ring((0, 1, 3, 2)) == Link(2 * 3.0, 5e-6)  # counterparts the other way round: 3 -> 0 is slower


def test_an_exchange_waits_for_the_rank_that_sends_or_receives_most() -> None:
    plain = Topology.from_config(CLUSTER)
    assert plain.direct((0, 3)) == Link(10.0, 5e-6)
    assert plain.direct((0, 1, 2)) == Link(100.0, 1e-6)
    assert plain.direct((0, 1, 3, 4)) == Link(3 / (2 / 10), 5e-6)  # two of three parts leave the node
    assert plain.direct((0, 1, 2, 3)) == Link(3 / (3 / 10), 5e-6)  # all three of rank 3's do
    assert plain.direct((0,)) is None
    measured = Topology.from_config(with_links(FOUR, ROWS))
    assert measured.direct((0, 2, 3)) == Link(pytest.approx(2 / max(2 / 5, 1 / 4, 1 / 3)), 5e-6)
    assert measured.ring((0, 1, 2, 3), abreast=False) == Link(3.0, 5e-6)  # hops 1 -> 2 and 3 -> 0


def test_links_per_node_keep_the_declared_ones_within() -> None:
    topology = Topology.from_config(with_links(FOUR, [[235, 7], [5, 235]], [[0, 2e-5], [1e-5, 0]]))
    assert topology.link(0, 1) == Link(100.0, 1e-6)
    assert topology.link(0, 3) == Link(7.0, 2e-5)
    assert topology.link(3, 0) == Link(5.0, 1e-5)
    assert topology.slowest((0, 1, 2)) == Link(5.0, 2e-5)
    assert "100 GB/s within a node, 5 to 7 GB/s between nodes" in topology.describe()


def test_a_placed_view_asks_for_other_ranks() -> None:
    for cluster in (FOUR, with_links(FOUR, ROWS)):
        topology = Topology.from_config(cluster)
        view = topology.placed((2, 0, 3))
        assert (view.num_ranks, view.regular) == (3, False)
        assert [view.node_of(i) for i in range(3)] == [1, 0, 1]
        assert view.link(0, 1) == topology.link(2, 0)
        assert view.slowest(range(3)) == topology.slowest((2, 0, 3))
        assert view.ring(range(3)) == topology.ring((2, 0, 3))
    assert Topology.from_config(FOUR, 3, (2, 0, 3)).link(0, 2) == topology.intra_node


def test_a_file_is_found_from_the_yaml_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "links.csv").write_text("# GB/s\n" + "\n".join(",".join(map(str, row)) for row in ROWS) + "\n")
    (tmp_path / "a" / "cluster.yaml").write_text("cluster: {nodes: 2, ranks_per_node: 2, links: {file: links.csv}}\n")
    (tmp_path / "run.yaml").write_text("base: a/cluster.yaml\n")
    config = load([str(tmp_path / "run.yaml")])
    topology = Topology.from_config(config.cluster)
    assert topology.link(1, 3).gbps == 7
    save(config, tmp_path / "plan.yaml")
    assert load([str(tmp_path / "plan.yaml")]) == config
    (tmp_path / "a" / "links.csv").write_text("0,1\n2,0\n")
    assert Topology.from_config(config.cluster).link(1, 3).gbps == 1, "the file as it was"


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ("gbps=[[0,2,1],[1,0,1],[1,1,0]]", r"cluster\.links\.gbps has 3 rows but the cluster has 4 ranks on 2 nodes"),
        ("gbps=[[0,2],[1]]", r"cluster\.links\.gbps is not square: row 1 has 1 columns, there are 2 rows"),
        ("gbps=[[0,-2],[1,0]]", "from 0 to 1 it is -2; off the diagonal it must be positive"),
        ("gbps=[[0,2],[0,0]]", "from 1 to 0 it is 0; off the diagonal it must be positive"),
        ("gbps=[[0,2],[nan,0]]", "from 1 to 0 it is nan"),
        ("gbps=[[0,1,1,1],[1,0,1,1],[1,1,5,1],[1,1,1,0]]", "from 2 to itself it is 5; write 0 on the diagonal"),
        ("gbps=[[0,x],[1,0]]", r"cluster\.links\.gbps must be rows of numbers"),
        ("latency_s=[[0,1],[1,0]]", r"cluster\.links\.latency_s needs cluster\.links\.gbps"),
        ("file=there/is/none.csv", r"cluster\.links\.file=there/is/none\.csv cannot be read"),
    ],
)
def test_impossible_matrices_are_refused(links: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        Topology.from_config(load([f"cluster.links.{links}"]).cluster)
    assert "\n" not in str(raised.value)
