"""Plans of models whose layers are not all alike: what bounds say of every layout, and what a known device takes."""

from __future__ import annotations

import dataclasses

import pytest

from trainsys.comm.topology import Topology
from trainsys.config import (
    BatchConfig,
    ClusterConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from trainsys.planner.bounds import outlook
from trainsys.planner.device import rate
from trainsys.planner.enumerate import blocks
from trainsys.planner.on_device import mixing
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout

HYBRID = ModelConfig(
    "linear_llama", 512, 64, 6, num_heads=4, num_kv_heads=2, ffn_dim=192, max_seq_len=64, softmax_every=3, decay="delta"
)
CLUSTER = ClusterConfig("made up", 2, 2, DeviceConfig("made up", 0.01, 1.0, 0.5, 10.0))


def test_bounds_know_which_layers_a_stage_has() -> None:
    config, deep = RunConfig(HYBRID, CLUSTER, batch=BatchConfig(4, 1, 64)), 0
    measured, topology = rate(CLUSTER, 4), Topology.from_config(CLUSTER, 4)
    for block, _ in blocks(config, 4):
        found = outlook(config, block, topology, measured)
        for number in range(block.size):
            parallel, size = block.layout(number)
            plan = predict(with_layout(config, parallel, size), parallel, measured)
            assert found.peak_gib.flat[number] == pytest.approx(plan.peak_gib, rel=1e-12), parallel
            assert found.least_s.flat[number] <= plan.step_s, parallel
            deep += parallel.vp > 1
    assert deep


def test_a_known_device_has_less_to_do() -> None:
    config = RunConfig(
        dataclasses.replace(HYBRID, dim=1024, num_heads=16, max_seq_len=8192),
        dataclasses.replace(CLUSTER, device=DeviceConfig("h100-80gb-sxm", memory_gib=70)),
        batch=BatchConfig(4, 1, 8192), train=TrainConfig(dtype="bfloat16"),
    )  # fmt: skip
    softmax = dataclasses.replace(config.model, softmax_every=1)
    linear = dataclasses.replace(config.model, softmax_every=0)
    share = [mixing(dataclasses.replace(config, model=model)) for model in (linear, config.model, softmax)]
    assert share[2] == 1
    assert 0.005 < share[0] < 0.1
    assert share[1] == pytest.approx((2 * share[0] + 1) / 3)
    steps = [predict(dataclasses.replace(config, model=m), ParallelConfig(dp=4)).step_s for m in (linear, softmax)]
    assert steps[0] < steps[1]
