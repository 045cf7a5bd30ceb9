"""What the search leaves out cannot be among the best: against predicting every layout, on small clusters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainsys.comm.topology import Topology
from trainsys.config import BatchConfig, ClusterConfig, DeviceConfig, LinkConfig, ModelConfig, ParallelConfig, RunConfig
from trainsys.planner import groups
from trainsys.planner.bounds import outlook
from trainsys.planner.device import rate
from trainsys.planner.enumerate import blocks
from trainsys.planner.plan import Plan
from trainsys.planner.predict import least_step_s, predict
from trainsys.planner.ranking import order, with_layout
from trainsys.planner.search import search
from trainsys.planner.uneven import evened

LLAMA = ModelConfig("llama", 512, 64, 6, num_heads=4, num_kv_heads=2, ffn_dim=192, max_seq_len=512)
MIXTRAL = dataclasses.replace(LLAMA, family="mixtral", num_experts=4, ffn_dim=96)
GPT2 = ModelConfig("gpt2", 512, 64, 5, num_heads=4, ffn_dim=256, max_seq_len=512, tied=True)


def exhaustive(config: RunConfig, ranks: int, any_microbatch: bool) -> list[Plan]:
    """Every legal layout that fits, predicted; those that offload only where the same without does not fit."""
    measured, plans = rate(config.cluster, ranks), []
    for block, reason in blocks(config, ranks, (), any_microbatch):
        if reason:
            continue
        fits: dict[tuple[ParallelConfig, int], Plan] = {}
        for number in range(block.size):
            parallel, size = block.layout(number)
            plan = predict(with_layout(config, parallel, size), parallel, measured)
            if plan.peak_gib <= plan.limit_gib:
                fits[parallel, size] = plan
        plans += (
            plan
            for (parallel, size), plan in fits.items()
            if parallel.offload == "none" or (dataclasses.replace(parallel, offload="none"), size) not in fits
        )
    return sorted(plans, key=order)


@st.composite
def tasks(draw: st.DrawFn) -> tuple[RunConfig, int, bool]:
    """A model, a batch and a cluster of up to 16 ranks, of which memory and links may be short."""
    ranks = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16]))
    memory_gib, host_gbps = draw(st.sampled_from([0.003, 0.006, 0.02, 1.0])), draw(st.sampled_from([0.1, 25.0]))
    backend = draw(st.sampled_from(["nccl", "gloo"]))
    device = DeviceConfig("made up", 0.01, memory_gib, 0.5, 10.0, host_gbps, backend)
    links = [LinkConfig(draw(st.sampled_from([0.02, 1.0, 100.0])), draw(st.sampled_from([0, 1e-5]))) for _ in range(2)]
    per_node = draw(st.sampled_from([2, 3, 8]))
    cluster = ClusterConfig("c", -(-ranks // per_node), per_node, device, *links, shared_cores=draw(st.booleans()))
    batch = BatchConfig(draw(st.sampled_from([4, 12, 16, 24])), draw(st.sampled_from([1, 2])), 64)
    parallel = ParallelConfig(reduction=draw(st.sampled_from(["canonical", "fast"])))
    model = draw(st.sampled_from([LLAMA, MIXTRAL, GPT2]))
    return RunConfig(model, cluster, batch=batch, parallel=parallel), ranks, draw(st.booleans())


@settings(max_examples=9, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tasks(), st.sampled_from([1, 5, 20]))
def test_the_best_are_those_of_predicting_everything(task, keep):
    config, ranks, any_microbatch = task
    every = exhaustive(config, ranks, any_microbatch)
    if not every:
        with pytest.raises(ValueError, match="no "):
            search(config, ranks, any_microbatch=any_microbatch)
        return
    report = search(config, ranks, keep=keep, any_microbatch=any_microbatch)
    expected = every[:keep]
    expected = sorted([*expected, *evened(config, expected, rate(config.cluster, ranks))], key=order)[:keep]
    assert [(p.parallel, p.microbatch_size, p.step_s) for p in report.plans] == [
        (p.parallel, p.microbatch_size, p.step_s) for p in expected
    ]
    assert report.simulated + report.pruned == len(every)
    for plan in every:  # nothing is both faster than all of the Pareto set and smaller
        assert any(p.step_s <= plan.step_s * (1 + 1e-9) and p.peak_gib <= 1.0501 * plan.peak_gib for p in report.pareto)


def test_nothing_is_taken_for_alike_where_links_are_measured(monkeypatch):
    """Group by group the ranking is the same as with one group for all that lie alike."""
    device, near, far = DeviceConfig("made up", 0.01, 1.0), LinkConfig(1.0, 1e-5), LinkConfig(0.1, 1e-4)
    config = RunConfig(MIXTRAL, ClusterConfig("c", 3, 4, device, near, far), batch=BatchConfig(24, 1, 64))
    short = search(config)
    for cached in (
        groups.team_links, groups.sequence_links, groups.exchange_links, groups.hop_links,
        groups.data_links, groups.expert_links, groups.ends_links, groups.whole_link,
    ):  # fmt: skip
        cached.cache_clear()
    misses = groups._regular_link.cache_info().misses
    monkeypatch.setattr(Topology, "even_links", False)
    assert search(config).plans == short.plans
    assert groups._regular_link.cache_info().misses == misses


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tasks())
def test_bounds_and_memory_are_those_of_each_layout(task):
    """The memory of arrays is that of one layout; no bound is above the prediction, and the closer one is closer."""
    config, ranks, any_microbatch = task
    measured, topology = rate(config.cluster, ranks), Topology.from_config(config.cluster, ranks)
    for block, reason in blocks(config, ranks, (), any_microbatch):
        if reason:
            continue
        view = outlook(config, block, topology, measured)
        for number in range(0, block.size, 3):
            parallel, size = block.layout(number)
            own = with_layout(config, parallel, size)
            plan = predict(own, parallel, measured)
            assert np.ravel(view.peak_gib)[number] == pytest.approx(plan.peak_gib, rel=1e-12), plan.layout
            assert np.ravel(view.least_s)[number] <= plan.step_s, plan.layout
            assert least_step_s(own, measured) <= plan.step_s, plan.layout
