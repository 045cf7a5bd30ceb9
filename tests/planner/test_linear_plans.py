"""Plans of models whose layers are not all alike: what bounds say of every layout, and what a known device takes."""

from __future__ import annotations

import dataclasses

import pytest

from trainsys.comm.scan_time import choose
from trainsys.comm.topology import Link, Topology
from trainsys.comm.wires import star
from trainsys.config import (
    BatchConfig,
    ClusterConfig,
    DeviceConfig,
    LinkConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
)
from trainsys.models.geometry import resolve
from trainsys.models.linear_llama_geometry import state_elements
from trainsys.planner.bounds import outlook
from trainsys.planner.device import rate
from trainsys.planner.enumerate import blocks
from trainsys.planner.on_device import mixing
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout
from trainsys.planner.stages import Stages
from trainsys.planner.states import linear_s, softmax_layers

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


def test_teams_exchange_states_and_not_sequences() -> None:
    """Only the softmax layers' part grows with the sequence, but for rows that change places once per run of layers."""
    cluster = dataclasses.replace(CLUSTER, intra_node=LinkConfig(1.0, 1e-4), inter_node=LinkConfig(1.0, 1e-4))
    config = RunConfig(HYBRID, cluster, batch=BatchConfig(4, 1, 64), parallel=ParallelConfig(cp=4))
    stages = Stages.of(HYBRID, config.parallel)
    longer = dataclasses.replace(config, batch=BatchConfig(4, 1, 6400))
    assert softmax_layers(config, stages, 0) == 2
    link, (state, transition) = Link(1.0, 1e-4), state_elements(resolve(HYBRID))
    rows = [linear_s(c, stages, 0, link) for c in (config, longer)]
    scan = choose(star(4, 1.0, 1e-4), 4 * state, 4 * transition, 1 << 10).seconds
    converted = (rows[1] - rows[0]) / 4  # two runs of linear layers, each before and after
    assert converted == pytest.approx((1 - 1 / 4) * (6400 - 64) / 4 * 64 * 4 / 1e9, rel=0.4)
    assert rows[0] == pytest.approx(4 * scan + 4 * 1e-4, rel=0.1)
