"""One group stands for all that lie alike: the links are those that a look at every rank finds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.comm.topology import Link, Topology
from trainsys.config import ClusterConfig, LinkConfig, ParallelConfig, RunConfig
from trainsys.planner import communication, groups
from trainsys.planner.stages import Stages

SIZES = (1.0, 1e5, 1e9)


class Irregular(Topology):
    """The same links, of which nothing is taken for granted."""

    even_links = False


def slow(links: tuple[Link, ...]) -> list[float]:
    return [max((link.transfer_s(size) for link in links), default=0.0) for size in SIZES]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 4, 6, 8]),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.sampled_from([1, 2, 3, 4, 5, 13, 16]),
    st.sampled_from([1, 2, 3, 4, 7]),
    st.sampled_from([1, 2, 3, 5, 8, 24]),
    st.sampled_from(["direct", "ring", "one ring"]),
    st.data(),
)
def test_the_short_way_finds_the_same_links(per_node, tp, cp, pp, dp, way, data):
    ep = data.draw(st.sampled_from([d for d in range(1, 13) if dp * cp % d == 0]))
    stages = Stages((1,) * pp, (dp,) * pp, tp, ep, cp)
    nodes = -(-stages.num_ranks // per_node)
    cluster = ClusterConfig("c", nodes, per_node, intra_node=LinkConfig(7.0, 1e-5), inter_node=LinkConfig(2.0, 2e-4))
    topology = Topology.from_config(cluster, stages.num_ranks)
    every = Irregular(**vars(topology))
    assert slow(groups.team_links(stages, topology)) == slow(groups.team_links(stages, every))
    for stage in range(pp):
        for links in (groups.sequence_links, groups.exchange_links, groups.team_links):
            assert slow(links(stages, topology, stage)) == slow(links(stages, every, stage)), links.__name__
        for links in (groups.data_links, groups.expert_links):
            assert slow(links(stages, topology, stage, way)) == slow(links(stages, every, stage, way)), links.__name__
    if pp > 1:
        assert slow(groups.ends_links(stages, topology, way)) == slow(groups.ends_links(stages, every, way))
    config = RunConfig(parallel=ParallelConfig(dp, tp, pp, cp=cp, ep=ep))
    for a in range(pp):
        for b in {(a + 1) % pp, (a - 1) % pp} - {a}:
            hops = {communication.hop_s(config, stages, t, a, b) for t in (topology, every)}
            assert len(hops) == 1
    assert communication.mirror_s(config, 1e6, topology) == communication.mirror_s(config, 1e6, every)


def test_a_matrix_of_links_is_asked_for_every_pair():
    """Nothing is taken for alike where the topology says that it is not: one slow pair is found wherever it is."""

    class OneSlowPair(Irregular):
        def link(self, a: int, b: int) -> Link:
            link = super().link(a, b)
            return replace(link, gbps=link.gbps / 10) if {a, b} == {8, 9} else link

    cluster = ClusterConfig("c", 4, 4, intra_node=LinkConfig(7.0, 0), inter_node=LinkConfig(2.0, 0))
    config = RunConfig(parallel=ParallelConfig(8, 1, 2))
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(cluster)
    slow_pair = OneSlowPair(**vars(topology))
    plain, found = (communication.hop_s(config, stages, t, 0, 1) for t in (topology, slow_pair))
    assert found == pytest.approx(10 * plain)
