"""What follows a layout when nodes fail, and what it earns: the manager's own choices, and a chain simulated."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.choose import choose
from trainsys.planner.device import rate
from trainsys.planner.goodput import Outlook, by_goodput, outlook
from trainsys.planner.predict import predict
from trainsys.planner.stages import notation
from trainsys.space.build import build_layout


def failing(config: RunConfig, mtbf_hours: float, repair_hours: float = 2.0, nodes: int = 3) -> RunConfig:
    device = replace(config.cluster.device, tflops=0.001)
    cluster = replace(
        config.cluster, nodes=nodes, device=device, node_mtbf_hours=mtbf_hours, node_repair_hours=repair_hours
    )
    return replace(config, cluster=cluster)


def test_successors_are_what_the_manager_chooses(small: RunConfig) -> None:
    config = failing(small, 24)
    parallel = ParallelConfig(dp=3, pp=2, stage_layers=(3, 3), zero=1)
    config = replace(config, parallel=parallel)
    nodes = {r: r // 2 for r in range(6)}
    layout = build_layout(parallel, (3, 3), range(6), config.elastic.chunk, nodes.__getitem__)
    after = [s for s in outlook(config, parallel).successors if s.change == -1]
    left = {r: n for r, n in nodes.items() if n != 0}
    chosen, _ = choose(config, layout, parallel, left, rate(config.cluster, 6))
    assert after[0].layout == notation(chosen)
    assert after[0].step_s == predict(config, chosen, rate(config.cluster, 6)).step_s
    assert after[0].received_gib > 0 and after[0].pause_s > config.elastic.heartbeat_limit_s
    assert sum(s.share for s in after) == pytest.approx(1)


def test_goodput_is_that_of_a_simulated_cluster(small: RunConfig) -> None:
    """Nodes fail and come back and come back at random; with all three lost it stands still."""
    config = failing(small, 5.0, 1.0)
    look = outlook(config, ParallelConfig(dp=6))
    assert simulated(config, look, 30_000) == pytest.approx(look.goodput, rel=0.02)
    assert look.availability < 0.97


def simulated(config: RunConfig, look: Outlook, events: int) -> float:
    """Tokens/s of a cluster that plays its failures and repairs one by one."""
    own = outlook(replace(config, cluster=replace(config.cluster, node_mtbf_hours=0.0)), ParallelConfig(dp=6)).goodput
    by_lost = {0: own} | {-s.change: s.tokens_per_s for s in look.successors if s.change < 0} | {3: 0.0}
    pauses = {-s.change: s for s in look.successors if s.change < 0}
    draw, lost, seconds, tokens = random.Random(1), 0, 0.0, 0.0
    for _ in range(events):
        fails = (3 - lost) / (config.cluster.node_mtbf_hours * 3600)
        stay = draw.expovariate(fails + lost / (config.cluster.node_repair_hours * 3600))
        seconds, tokens = seconds + stay, tokens + stay * by_lost[lost]
        worse = draw.random() < fails / (fails + lost / (config.cluster.node_repair_hours * 3600))
        after = lost + 1 if worse else lost - 1
        if worse and after in pauses:
            tokens -= pauses[after].pause_s * by_lost[after]
        elif not worse and lost in pauses:
            tokens -= pauses[lost].switch_s * by_lost[after]
        lost = after
    return tokens / seconds


def test_nodes_that_never_fail_earn_what_the_layout_does(small: RunConfig) -> None:
    parallel = ParallelConfig(dp=6)
    look = outlook(failing(small, 0.0), parallel)
    assert (look.goodput, look.availability) == (predict(failing(small, 0.0), parallel).tokens_per_s, 1.0)
    losses = [outlook(failing(small, hours), parallel).goodput for hours in (1e6, 100.0, 10.0, 1.0)]
    assert losses == sorted(losses, reverse=True)


def test_the_choice_depends_on_how_often_nodes_fail(small: RunConfig) -> None:
    """What two nodes cannot hold stands still when one of three is gone."""
    config = failing(small, 3.0, 3.0)
    fragile = predict(replace(config, elastic=replace(config.elastic, min_ranks=5)), ParallelConfig(dp=6))
    ((_, look),) = by_goodput(replace(config, elastic=replace(config.elastic, min_ranks=5)), [fragile])
    assert [s.layout for s in look.successors if s.change < 0] == [""]
    assert "elastic.min_ranks" in look.successors[0].why
    ((_, hardy),) = by_goodput(config, [fragile])
    assert look.goodput < 0.6 * hardy.goodput
