"""Enumeration is complete, prediction adds up, and the ranking is the ranking of the predictions."""

from dataclasses import replace
from itertools import pairwise, product

import pytest

from trainsys.config import BatchConfig, LinkConfig, ParallelConfig
from trainsys.planner.check import check_parallel
from trainsys.planner.enumerate import candidates
from trainsys.planner.in_flight import FORMS
from trainsys.planner.predict import predict
from trainsys.planner.search import search


def test_enumeration_finds_exactly_the_legal_layouts(small):
    legal, rejected = candidates(small, 4)
    assert len(legal) == len(set(legal))
    every = [
        ParallelConfig(dp, tp, pp, vp, cp, zero=zero, sequence_parallel=sp, schedule=schedule, recompute=recompute)
        for dp, tp, pp, cp in product((1, 2, 4), repeat=4)
        if dp * tp * pp * cp == 4
        for zero in ((0, 1, 2, 3) if dp * cp > 1 else (0,))
        for sp in ((False, True) if tp > 1 else (False,))
        for schedule in (FORMS if pp > 1 else ("1f1b",))
        for vp in range(1, small.model.num_layers // pp + 1 if pp > 1 else 2)
        if {"1f1b": vp == 1, "interleaved": vp > 1}.get(schedule, True)
        for recompute in ("none", "full")
    ]

    def passes(parallel: ParallelConfig) -> bool:
        try:
            check_parallel(replace(small, parallel=parallel), 4)
        except ValueError:
            return False
        return True

    assert set(legal) == {parallel for parallel in every if passes(parallel)}
    assert len(legal) + rejected.total() == len(every)
    assert rejected["model.num_heads=6 is not divisible by parallel.tp=4"] == 4


def test_long_sequences_are_cut(large):
    long = replace(large, batch=replace(large.batch, seq_len=32768), model=replace(large.model, max_seq_len=32768))
    assert {parallel.cp for parallel in candidates(long, 8)[0]} == {1, 2, 4, 8}
    best = search(long).plans[0]
    assert best.parallel.cp > 1
    assert best.peak_gib <= best.limit_gib


def test_too_few_microbatches_are_counted_as_a_reason(small):
    _, rejected = candidates(replace(small, batch=BatchConfig(4, 2, 128)), 4)
    assert rejected["2 microbatches < parallel.dp=4"] == 8  # zero 0 to 3, with and without recomputation


def test_the_ranking_is_by_step_time_and_repeatable(small):
    first, second = search(small), search(small)
    assert [p.layout for p in first.plans] == [p.layout for p in second.plans]
    times = [p.step_s for p in first.plans]
    assert all(a < b * 1.004 for a, b in pairwise(times))
    assert first.plans[0] == predict(small, first.plans[0].parallel)
    assert first.search_s < 1


def test_eight_ranks_answer_at_once(small):
    cluster = replace(small.cluster, nodes=4)
    assert search(replace(small, cluster=cluster)).search_s < 1


def test_parts_of_a_step_add_up(small):
    for plan in search(small).plans:
        parts = plan.compute_s + plan.tp_s + plan.cp_s + plan.ep_s + plan.dp_s + plan.update_s + plan.waiting_s
        assert plan.step_s == pytest.approx(parts)
        assert plan.tokens_per_s == pytest.approx(16 * 128 / plan.step_s)
        assert 0 <= plan.bubble < 1
        assert 0 < plan.mfu <= small.cluster.device.efficiency
        assert plan.peak_gib == pytest.approx(plan.memory.total)


def test_a_slow_network_moves_the_choice(small):
    """The bound that is named changes with the link, and tensor parallelism leaves the lead."""
    slow = replace(small, cluster=replace(small.cluster, inter_node=LinkConfig(0.01, 1e-3), intra_node=LinkConfig(1.0)))
    fast = replace(small, cluster=replace(small.cluster, inter_node=LinkConfig(1e4, 0), intra_node=LinkConfig(1e4, 0)))
    assert search(fast).plans[0].bound_by == "compute"
    data_parallel = ParallelConfig(dp=4)
    assert predict(slow, data_parallel).bound_by == "dp"
    assert predict(slow, ParallelConfig(tp=2, pp=2)).step_s < predict(slow, data_parallel).step_s


def test_memory_decides_when_it_must(large):
    report = search(large, fixed=("cp", "vp"), keep=None)
    assert all(plan.peak_gib <= plan.limit_gib for plan in report.plans)
    assert report.nearest_miss is not None
    assert report.nearest_miss.over_gib > 0
    (over,) = [reason for reason in report.rejected if reason.startswith("over memory: nearest is ")]
    assert report.nearest_miss.layout in over
    forced = [plan for plan in report.plans if plan.bound_by == "memory"]
    assert forced
    assert all(plan.parallel.recompute == "full" or plan.parallel.offload == "activations" for plan in forced)


def test_no_layout_fits(large):
    cramped = replace(large.cluster, device=replace(large.cluster.device, memory_gib=10.0))
    with pytest.raises(
        ValueError, match=r"no layout fits on 8 ranks: nearest is dp.* misses .*memory_gib=10 by .* GiB"
    ):
        search(replace(large, cluster=cramped))


def test_recomputation_saves_activations_and_costs_time(large):
    plain, full = (predict(large, ParallelConfig(tp=8, recompute=r, reduction="fast")) for r in ("none", "full"))
    assert full.memory.activations < plain.memory.activations / 5
    assert 1.2 < full.step_s / plain.step_s < 1.45


def test_a_ragged_layout_waits_for_its_thinnest_stage(small):
    small = replace(small, cluster=replace(small.cluster, inter_node=LinkConfig(100, 0), intra_node=LinkConfig(100, 0)))
    whole = predict(small, ParallelConfig(dp=2, pp=2))
    ragged = predict(small, ParallelConfig(dp=2, pp=2, stage_replicas=(2, 1)))
    single = predict(small, ParallelConfig(dp=1, pp=2))
    assert ragged.layout == "dp[2,1]·tp1·pp2 1f1b"
    assert whole.step_s < ragged.step_s == pytest.approx(single.step_s, rel=0.01)  # the stage with the head limits both
    assert whole.step_s < predict(small, ParallelConfig(pp=2, stage_replicas=(1, 2))).step_s < single.step_s
    balanced = predict(small, ParallelConfig(dp=2, pp=2, stage_replicas=(2, 1), stage_layers=(4, 2)))
    assert balanced.step_s < ragged.step_s


@pytest.mark.parametrize(
    "given", [{"zero": 1}, {"tp": 2, "recompute": "none"}, {"pp": 2, "schedule": "gpipe"}, {"sequence_parallel": True}]
)
def test_what_is_fixed_stays(small, given):
    """The layouts are those of the whole search that have the values, and no others."""
    config = replace(small, parallel=replace(small.parallel, **given))
    kept = [p for p in candidates(small, 4)[0] if all(getattr(p, key) == value for key, value in given.items())]
    assert kept
    assert candidates(config, 4, tuple(given))[0] == kept
    plans = search(config, fixed=tuple(given), keep=None).plans
    assert {p.parallel for p in plans if not p.parallel.stage_layers} == set(kept)


def test_a_fixed_number_of_runs_is_searched(small):
    config = replace(small, parallel=replace(small.parallel, vp=3))
    plans = search(config, fixed=("vp",), keep=None).plans
    assert {(p.parallel.vp, p.parallel.schedule) for p in plans} == {(3, "interleaved"), (3, "gpipe")}


def test_numbers_of_runs_are_the_least_for_the_length_of_the_longest(small):
    """Of 6 layers in 2 stages: 1, 2 and 3 runs; of 3 layers a stage, 2 runs have 2 at most and 3 have 1."""
    large = replace(small, model=replace(small.model, num_layers=48))
    for config, most in ((small, {1, 2, 3}), (large, {1, 2, 3, 4, 5, 6, 8, 12, 24})):
        legal, _ = candidates(replace(config, parallel=ParallelConfig(pp=2)), 2, ("pp",))
        assert {p.vp for p in legal if p.schedule == "gpipe"} == most


def test_microbatch_sizes_divide_a_replicas_share(small):
    report = search(small, any_microbatch=True, keep=None)
    found = {(p.parallel.dp, p.microbatch_size) for p in report.plans}
    assert found == {(dp, size) for dp in (1, 2, 4) for size in (1, 2, 4, 8, 16) if size <= 16 // dp}
    kept = search(small)
    assert {p.microbatch_size for p in kept.plans} == {small.batch.microbatch_size}
    assert report.plans[0].step_s <= kept.plans[0].step_s


def test_a_schedule_without_a_pipeline_does_no_harm(small):
    config = replace(small, parallel=replace(small.parallel, schedule="gpipe"))
    plans = search(config, fixed=("schedule", "pp")).plans
    assert {(p.parallel.schedule, p.parallel.pp) for p in plans} == {("gpipe", 1)}


def test_a_stage_with_the_head_gets_fewer_layers(large):
    """Llama 8B's head costs as much as several layers: eight stages of four are not equally busy."""
    one = replace(large, parallel=replace(large.parallel, pp=8))
    best = search(one, fixed=("pp",)).plans[0]
    assert best.parallel.stage_layers
    assert best.parallel.stage_layers[-1] < 4
    assert best.step_s < predict(one, replace(best.parallel, stage_layers=())).step_s


def test_activations_go_to_the_host_only_where_memory_asks(large):
    """A layout that offloads would not fit without."""
    report = search(large, fixed=("pp",), keep=None)
    offload = [p for p in report.plans if p.parallel.offload == "activations" and not p.parallel.stage_layers]
    assert offload
    for plan in offload:
        kept = predict(large, replace(plan.parallel, offload="none"))
        assert kept.peak_gib > kept.limit_gib
        assert plan.memory.activations < kept.memory.activations
        assert plan.offload_s > 0 == kept.offload_s
        assert plan.bound_by == "memory"
    slow = replace(large.cluster, device=replace(large.cluster.device, host_gbps=1.0))
    later = predict(replace(large, cluster=slow), offload[0].parallel)
    assert later.offload_s == pytest.approx(25 * offload[0].offload_s)


def test_fewer_ranks_are_part_of_the_pareto_set(small):
    report = search(small, halves=10**12)  # it has 4 ranks: two halves
    assert {plan.num_ranks for plan in report.pareto} == {1, 2, 4}
    for plan in report.pareto:
        others = (p for p in report.pareto if p is not plan)
        assert not any(
            p.step_s <= plan.step_s and p.peak_gib <= plan.peak_gib and p.num_ranks <= plan.num_ranks for p in others
        )


def test_absurd_sizes_are_refused_at_once(small):
    huge = replace(small, cluster=replace(small.cluster, nodes=10**13))
    with pytest.raises(ValueError, match=r"^20000000000000 ranks are more than .*; lower cluster\.nodes="):
        search(huge)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tp": 3}, r"^no legal layout on 4 ranks has parallel\.tp=3; nearest is dp2·tp2.*, with parallel\.tp=2$"),
        ({"tp": 4}, r"has parallel\.tp=4: model\.num_heads=6 is not divisible by parallel\.tp=4; nearest is .*tp=2$"),
        ({"tp": 1, "sequence_parallel": True}, r"tp=1 parallel\.sequence_parallel=true; nearest is .*, with .*tp=2$"),
        ({"zero": 7}, r"^parallel\.zero=7 is unknown; set one of 0, 1, 2, 3$"),
        ({"stage_layers": (1, 5)}, r"^parallel\.stage_layers cannot be kept: only even layouts are searched"),
    ],
)  # fmt: skip
def test_nothing_has_what_is_fixed(small, given, message):
    with pytest.raises(ValueError, match=message):
        search(replace(small, parallel=replace(small.parallel, **given)), fixed=tuple(given))


@pytest.mark.parametrize("given", [{"order": "tp,pp"}, {"reduction": "quick"}])
def test_a_wrong_value_of_what_is_not_searched_is_named(small, given):
    (key,) = given
    with pytest.raises(ValueError, match=rf"^parallel\.{key}=") as error:
        search(replace(small, parallel=replace(small.parallel, **given)))
    assert "\n" not in str(error.value)
