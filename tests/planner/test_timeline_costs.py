"""What the simulated actions take and keep, from the planner's own costs."""

from __future__ import annotations

import dataclasses

import pytest

from trainsys.config import RunConfig, load
from trainsys.planner.memory import stage_memory
from trainsys.planner.pipeline import most_in_flight
from trainsys.planner.predict import predict, shares
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages
from trainsys.planner.timeline import Timeline, timeline


def planned(config: RunConfig, **parallel: object) -> tuple[RunConfig, Timeline]:
    config = dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, **parallel))
    return config, timeline(config)


def test_attention_has_no_weights(small: RunConfig) -> None:
    costs = planned(small, pp=2, schedule="zb1p")[1].costs
    assert costs.i_s and costs.w_s
    assert [i + w for i, w in zip(costs.i_s, costs.w_s, strict=True)] == pytest.approx(list(costs.b_s))
    assert all(w < f < i for f, i, w in zip(costs.f_s, costs.i_s, costs.w_s, strict=True))
    short = dataclasses.replace(small, batch=dataclasses.replace(small.batch, seq_len=8))
    near = planned(short, pp=2, schedule="zb1p")[1].costs
    assert near.w_s and near.i_s
    assert near.w_s[0] / near.i_s[0] > costs.w_s[0] / costs.i_s[0]


@pytest.mark.parametrize("name", ["1f1b", "zb1p"])
def test_search_and_timeline_take_the_same_step(small: RunConfig, name: str) -> None:
    config, found = planned(small, pp=2, schedule=name)
    assert found.run.bubble == pytest.approx(predict(config, config.parallel).bubble, abs=0.02)


def test_peaks_are_those_of_the_memory_model(large: RunConfig) -> None:
    for extra in ({}, {"recompute": "full"}, {"schedule": "interleaved", "vp": 2}):
        config, found = planned(large, pp=4, tp=2, **extra)
        stages = Stages.of(config.model, config.parallel)
        alive = most_in_flight(config.parallel.schedule, *shares(config, stages), stages.vp)
        memories = stage_memory(config, stages, stage_sizes(config.model, stages, 0), alive)
        assert found.peak_gib == pytest.approx([m.total - m.transition for m in memories], rel=0.02), extra


def test_actions_of_their_own_are_no_part_of_a_backward(large: RunConfig) -> None:
    plain, again = planned(large, pp=4, tp=2)[1], planned(large, pp=4, tp=2, recompute="stage")[1]
    assert again.costs.b_s == plain.costs.b_s
    assert again.run.step_s > plain.run.step_s
    assert max(again.peak_gib) < max(plain.peak_gib)
    host = load(["cluster.device.host_gbps=200"]).cluster.device.host_gbps
    fast = dataclasses.replace(large.cluster, device=dataclasses.replace(large.cluster.device, host_gbps=host))
    copied = planned(dataclasses.replace(large, cluster=fast), pp=4, tp=2, offload="scheduled")[1]
    assert copied.costs.offload_s and min(copied.costs.offload_s) > 0
    assert copied.costs.f_s == plain.costs.f_s
