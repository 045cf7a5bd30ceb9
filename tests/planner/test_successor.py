"""What to do next: legal, fitting, cheap to reach, and honest when nothing is possible."""

from dataclasses import replace

import pytest

from trainsys.config import ElasticConfig, LinkConfig, ParallelConfig, RunConfig
from trainsys.planner.check import check_parallel
from trainsys.planner.moves import moved_bytes
from trainsys.planner.predict import predict
from trainsys.planner.stages import Stages
from trainsys.planner.successor import successor

LOSSES = [
    (ParallelConfig(dp=4), 3, (3,)),
    (ParallelConfig(dp=2, pp=2), 3, (2, 1)),
    (ParallelConfig(dp=2, pp=2), 2, (2, 0)),
    (ParallelConfig(dp=1, pp=4), 3, (1, 0, 1, 1)),
    (ParallelConfig(dp=2, tp=2), 1, (1,)),
    (ParallelConfig(dp=1, tp=2, pp=2), 1, (0, 1)),
    (ParallelConfig(dp=4, zero=1), 3, (3,)),
    (ParallelConfig(dp=2, pp=2), 4, (2, 1)),  # a fresh rank has joined
]


def with_memory(config: RunConfig, gib: float) -> RunConfig:
    return replace(config, cluster=replace(config.cluster, device=replace(config.cluster.device, memory_gib=gib)))


@pytest.mark.parametrize(("current", "teams", "alive"), LOSSES)
def test_the_next_layout_is_legal_and_no_slower_than_standing_still(small, current, teams, alive):
    after = successor(small, teams, current, alive)
    check_parallel(replace(small, parallel=after), teams * current.tp)
    assert (after.tp, after.zero, after.schedule) == (current.tp, current.zero, current.schedule)
    lone = replace(current, dp=1, pp=1, stage_replicas=(), stage_layers=())
    assert predict(small, after).step_s <= predict(small, lone).step_s * 1.001
    assert after == successor(small, teams, current, alive)


def test_what_is_left_shares_out_the_experts_as_far_as_it_can(small):
    one_layer = replace(small.model, family="mixtral", num_experts=4, num_layers=1)  # no pipeline to turn to
    config = replace(small, model=one_layer, parallel=ParallelConfig(dp=4, ep=4))
    assert [successor(config, n, config.parallel, (n,)).ep for n in (4, 3, 2, 1)] == [4, 1, 2, 1]
    again = successor(config, 4, replace(config.parallel, dp=3, ep=1, stage_replicas=(3,)), (3,))
    assert (again.dp, again.ep) == (4, 4)


def test_what_is_left_cuts_sequences_as_far_as_it_can(small):
    wide = replace(small, cluster=replace(small.cluster, nodes=4))
    config = replace(wide, parallel=ParallelConfig(cp=4, dp=2))
    now, working, found = config.parallel, 8, []
    for teams in (7, 4, 3, 1, 8):
        now = successor(config, teams, now, (min(teams, working), *(0,) * (now.pp - 1)))
        working = Stages.of(config.model, now).num_teams
        check_parallel(replace(config, parallel=now), working)
        found.append((now.cp, working))
    assert found == [(4, 4), (4, 4), (2, 2), (1, 1), (4, 8)]


def test_teams_that_share_experts_and_sequences_stay_together(small):
    """Of 8 microbatches three replicas have unequal shares: the experts are shared out no more, wherever teams end."""
    one_layer = replace(small.model, family="mixtral", num_experts=4, num_layers=1)
    cluster = replace(small.cluster, nodes=4)
    config = replace(small, model=one_layer, cluster=cluster, parallel=ParallelConfig(dp=4, cp=2, ep=2))
    found = [successor(config, teams, config.parallel, (teams,)) for teams in (8, 7, 5)]
    assert [(after.cp, after.dp, after.ep) for after in found] == [(2, 4, 2), (2, 3, 1), (2, 2, 2)]


def test_teams_of_broken_replicas_make_a_new_one(small):
    """Two replicas lost a team each: the two that are left hold the same, and share a sequence from now on."""
    config = replace(small, parallel=ParallelConfig(cp=2, dp=2))
    after = successor(config, 2, config.parallel, (2,))
    assert (after.cp, after.dp, after.pp) == (2, 1, 1)
    stages = Stages.of(config.model, after)
    assert moved_bytes(config, Stages.of(config.model, config.parallel), (2,), stages, 0) == 0


def test_a_fresh_rank_restores_the_layout(small):
    """Where moving is dear, the join fills the gap and nothing else changes."""
    slow = replace(small, cluster=replace(small.cluster, intra_node=LinkConfig(0.001), inter_node=LinkConfig(0.001)))
    current = ParallelConfig(dp=2, pp=2)
    assert successor(with_memory(slow, 0.09), 4, current, (2, 1)) == current


def test_memory_keeps_the_stages_and_makes_the_layout_ragged(small):
    six = replace(small, cluster=replace(small.cluster, nodes=3))
    current = ParallelConfig(dp=2, pp=3)
    whole, flat = predict(six, current).peak_gib, predict(six, ParallelConfig(dp=5, stage_replicas=(5,))).peak_gib
    assert whole < flat
    after = successor(with_memory(six, flat * 0.99), 5, current, (2, 1, 2))
    assert after.pp > 1
    assert len(set(after.stage_replicas)) > 1
    assert sum(after.stage_replicas) == 5


def test_recomputation_is_the_last_resort(small):
    plain = predict(small, ParallelConfig(dp=1)).peak_gib
    full = predict(small, ParallelConfig(dp=1, recompute="full")).peak_gib
    current = ParallelConfig(dp=2)
    assert successor(with_memory(small, plain * 1.01), 1, current, (1,)).recompute == "none"
    assert successor(with_memory(small, (plain + full) / 2), 1, current, (1,)).recompute == "full"
    with pytest.raises(ValueError, match=r"no layout fits on the 1 rank left: nearest is dp1.* by .* GiB"):
        successor(with_memory(small, full / 2), 1, current, (1,))


def test_too_few_ranks(small):
    with pytest.raises(ValueError, match="needs ≥ 1 ranks, 0 alive"):
        successor(small, 0, ParallelConfig(dp=2), (0,))
    with pytest.raises(ValueError, match=r"needs ≥ 2 ranks, 0 in whole teams of parallel\.tp=2"):
        successor(small, 0, ParallelConfig(dp=2, tp=2), (0,))
    strict = replace(small, elastic=ElasticConfig(min_ranks=3))
    with pytest.raises(ValueError, match=r"needs ≥ 3 ranks, 2 alive; lower elastic\.min_ranks"):
        successor(strict, 2, ParallelConfig(dp=3), (2,))


def test_moved_bytes(small):
    def moved(before: ParallelConfig, alive: tuple[int, ...], after: ParallelConfig, zero: int = 0) -> float:
        return moved_bytes(small, Stages.of(small.model, before), alive, Stages.of(small.model, after), zero)

    four, three = ParallelConfig(dp=4), ParallelConfig(dp=3, stage_replicas=(3,))
    assert moved(four, (3,), three) == 0
    grown = moved(four, (3,), three, zero=1)
    assert 0 < grown < moved(four, (3,), four)  # shares grow from 1/4 to 1/3; a fresh rank needs everything
    pipeline = ParallelConfig(dp=2, pp=2)
    assert moved(pipeline, (2, 2), pipeline) == 0
    assert moved(pipeline, (2, 2), four) > 0
