"""What follows a layout when nodes fail, and what it earns: the manager's own choices, and a chain simulated."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.choose import choose
from trainsys.planner.device import rate
from trainsys.planner.goodput import Outlook, by_goodput, lost_shares, outlook
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
    assert after[0].layout == notation(replace(chosen, stage_layers=()))  # an even split
    assert after[0].step_s == predict(config, chosen, rate(config.cluster, 6)).step_s
    assert after[0].received_gib > 0 and after[0].pause_s > config.elastic.heartbeat_limit_s
    assert sum(s.share for s in after) == pytest.approx(1)


def test_goodput_is_that_of_a_simulated_cluster(small: RunConfig) -> None:
    """Nodes fail and come back and come back at random; with all three lost it stands still."""
    config = failing(small, 5.0, 1.0)
    look = outlook(config, ParallelConfig(dp=6))
    assert simulated(config, ParallelConfig(dp=6), look, 30_000) == pytest.approx(look.goodput, rel=0.02)
    assert look.availability < 0.97
    assert look.beyond == pytest.approx((1 / 6) ** 3)


@pytest.mark.parametrize("stops", [False, True])
def test_what_is_not_in_the_checkpoint_is_done_again(small: RunConfig, stops: bool) -> None:
    """Both copies of each stage are on one node; or what is left is too little, and the run ends."""
    config, parallel = failing(small, 5.0, 1.0, nodes=2), ParallelConfig(cp=2, pp=2)
    config = replace(config, elastic=replace(config.elastic, min_ranks=3 if stops else 1))
    often, seldom = (replace(config, checkpoint=replace(config.checkpoint, every=n)) for n in (10, 30))
    look = outlook(often, parallel)
    lost = next(s for s in look.successors if s.change == -1)
    assert lost.lost_steps == 5
    assert ("elastic.min_ranks" in lost.why and not lost.layout) if stops else ("state is lost" in lost.why)
    assert simulated(often, parallel, look, 30_000) == pytest.approx(look.goodput, rel=0.02)
    never = outlook(config, parallel)
    assert {s.lost_steps for s in never.successors if s.change == -1} == {config.train.steps / 2}
    assert look.goodput > outlook(seldom, parallel).goodput > never.goodput


def test_a_single_node_takes_the_state_with_it(small: RunConfig) -> None:
    config, parallel = failing(small, 5.0, 1.0, nodes=1), ParallelConfig(dp=2)
    look = outlook(config, parallel)
    assert [s.change for s in look.successors] == [1]
    assert simulated(config, parallel, look, 30_000) == pytest.approx(look.goodput, rel=0.02)
    assert look.availability < 5 / 6


def simulated(config: RunConfig, parallel: ParallelConfig, look: Outlook, events: int) -> float:
    """Tokens/s of a cluster that plays its failures and repairs one by one."""
    own, nodes = predict(config, parallel).tokens_per_s, config.cluster.nodes
    after_loss = {-s.change: s for s in look.successors if s.change < 0}
    by_lost = dict.fromkeys(range(nodes + 1), 0.0) | {0: own} | {k: s.tokens_per_s for k, s in after_loss.items()}
    step_tokens = config.batch.global_size * config.batch.seq_len
    draw, lost, seconds, tokens = random.Random(1), 0, 0.0, 0.0
    for _ in range(events):
        fails = (nodes - lost) / (config.cluster.node_mtbf_hours * 3600)
        comes = lost / (config.cluster.node_repair_hours * 3600)
        stay = draw.expovariate(fails + comes)
        seconds, tokens = seconds + stay, tokens + stay * by_lost[lost]
        after = lost + 1 if draw.random() < fails / (fails + comes) else lost - 1
        if after > lost and after in after_loss:
            tokens -= after_loss[after].pause_s * by_lost[after] + after_loss[after].lost_steps * step_tokens
        elif after == nodes and by_lost[lost]:
            tokens -= (config.checkpoint.every or config.train.steps) / 2 * step_tokens
        elif after < lost and lost in after_loss:
            tokens -= after_loss[lost].switch_s * by_lost[after]
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


@pytest.mark.parametrize("nodes", [1, 40, 5000])
def test_lost_nodes_are_binomial(nodes: int) -> None:
    shares = lost_shares(nodes, 1 / 50)
    mean = sum(k * share for k, share in enumerate(shares)) / sum(shares)
    assert mean == pytest.approx(nodes / 51)
    assert shares[1] / shares[0] == pytest.approx(nodes / 50)
