"""Clusters with several types of devices: what each rank has counts, and nothing changes where they are all alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.comm.topology import Topology
from trainsys.config import (
    BatchConfig,
    ClusterConfig,
    DeviceConfig,
    LinkConfig,
    ModelConfig,
    OtherDevices,
    ParallelConfig,
    RunConfig,
    load,
    save,
)
from trainsys.planner.bounds import outlook
from trainsys.planner.compute import model_flops, slowest_compute
from trainsys.planner.device import rate
from trainsys.planner.device_names import check_device_names
from trainsys.planner.devices import stage_by_stage, stage_devices
from trainsys.planner.enumerate import blocks
from trainsys.planner.memory import stage_memory
from trainsys.planner.pipeline import most_in_flight
from trainsys.planner.predict import least_step_s, predict, shares
from trainsys.planner.ranking import with_layout
from trainsys.planner.search import _places, search
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages
from trainsys.planner.uneven import least_busy

MODEL = ModelConfig("llama", 256, 64, 12, num_heads=4, num_kv_heads=2, ffn_dim=192, max_seq_len=512)
FAST = DeviceConfig("fast", 0.02, 1.0, 0.5, 20.0, backend="nccl")
LINK = LinkConfig(10.0, 1e-6)  # the same everywhere: where a rank is does not matter, what it is does


def config_of(*others: OtherDevices, nodes: int = 4, device: DeviceConfig = FAST, link: LinkConfig = LINK) -> RunConfig:
    cluster = ClusterConfig("c", nodes, 2, device, link, link, other_devices=others)
    return RunConfig(MODEL, cluster, batch=BatchConfig(32, 1, 128))


def slowed(tflops: float = 0.5, memory: float = 1.0, gbps: float = 1.0) -> DeviceConfig:
    device = replace(FAST, name="slow", tflops=FAST.tflops * tflops, memory_gib=FAST.memory_gib * memory)
    return replace(device, memory_gbps=FAST.memory_gbps * gbps)


@pytest.mark.parametrize("any_microbatch", [False, True])
def test_other_devices_that_are_the_same_change_nothing(any_microbatch: bool) -> None:
    plain, split = config_of(), config_of(OtherDevices(1, FAST), OtherDevices(2, FAST))
    assert Topology.from_config(split.cluster).regular
    found, expected = (search(config, any_microbatch=any_microbatch) for config in (split, plain))
    assert (found.plans, found.pareto, found.cluster) == (expected.plans, expected.pareto, expected.cluster)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.floats(0.1, 1.0), st.floats(0.03, 1.0), st.floats(0.1, 1.0), st.integers(1, 3))
def test_between_slow_everywhere_and_fast_everywhere(tflops: float, memory: float, gbps: float, nodes: int) -> None:
    slow = slowed(tflops, memory, gbps)
    configs = config_of(OtherDevices(nodes, slow)), config_of(device=slow), config_of()
    mixed, worst, best = (search(config).plans[0].step_s for config in configs)
    assert 0.995 * best <= mixed <= 1.005 * worst


def test_half_of_the_nodes_slow_is_much_better_than_all() -> None:
    slow, steps = slowed(0.25), []
    for config in (config_of(), config_of(OtherDevices(2, slow)), config_of(device=slow)):
        steps.append(search(config).plans[0].step_s)
    assert steps[0] < steps[1] < 0.6 * steps[2]  # 2 fast and 2 slow nodes do 2.5 / 4 of the work of 4 fast ones


@pytest.mark.parametrize(("factor", "expected"), [(1.0, None), (0.5, 8), (0.2, 10)])
def test_slow_stages_get_fewer_layers(factor: float, expected: int | None) -> None:
    config = config_of(OtherDevices(2, slowed(factor)))
    devices = stage_by_stage(Topology.from_config(config.cluster), 4, 2, 1)
    parallel = ParallelConfig(4, 1, 2, zero=1, devices=devices if factor < 1 else ())
    config = replace(config, parallel=parallel)
    fast, slow = least_busy(config, rate(config.cluster, 8))
    if expected is None:
        assert abs(fast - slow) <= 1
    else:
        assert abs(fast - expected) <= 1  # the head stands with the slow stage
        even, uneven = (predict(config, replace(parallel, stage_layers=n)) for n in ((6, 6), (fast, slow)))
        assert uneven.step_s < 0.85 * even.step_s


def test_a_stage_takes_as_long_as_on_its_slowest_device() -> None:
    slow = slowed(0.25)
    config, alone = config_of(OtherDevices(2, slow)), config_of(device=slow)
    parallel = ParallelConfig(2, 2, 2)
    stages, topology = Stages.of(MODEL, parallel), Topology.from_config(config.cluster)
    flops = rate(config.cluster, 8).flops
    both = slowest_compute(config, stages, topology, flops)  # each stage has a replica of each type
    assert both == slowest_compute(alone, stages, Topology.from_config(alone.cluster), flops / 4)
    apart = slowest_compute(config, stages, topology.placed(stage_by_stage(topology, 2, 2, 2)), flops)
    assert apart.forward_s == (pytest.approx(both.forward_s[0] / 4), both.forward_s[1])


@pytest.mark.parametrize("memory", [0.012, 0.02])
def test_every_rank_has_what_its_stage_needs(memory: float) -> None:
    config = config_of(OtherDevices(2, slowed(0.5, memory)))
    report = search(config)
    placed = 0
    for plan in report.plans:
        own = with_layout(config, plan.parallel, plan.microbatch_size)
        stages = Stages.of(MODEL, plan.parallel)
        topology = Topology.from_config(config.cluster, None, plan.parallel.devices)
        in_flight = most_in_flight(plan.parallel.schedule, *shares(own, stages), stages.vp)
        memories = stage_memory(own, stages, stage_sizes(MODEL, stages, plan.parallel.zero), in_flight)
        for stage, needed in enumerate(memories):
            for first in stages.data_group(stage):
                for rank in range(first, first + stages.tp):
                    assert needed.total <= topology.device_of(rank).memory_gib, plan.layout
        placed += bool(plan.parallel.devices)
    assert placed
    tight = slowed(0.5, 0.001)
    with pytest.raises(ValueError, match=r"misses cluster.device.memory_gib=0.001 by"):
        search(config_of(OtherDevices(2, tight)))


def test_layers_move_away_from_devices_without_memory() -> None:
    """No even layout fits into the small devices, but one that gives them few layers does."""
    for memory in np.geomspace(0.02, 0.002, 60):
        config = config_of(OtherDevices(1, slowed(0.1, memory)), nodes=2)
        fixed = ("zero", "recompute", "tp", "offload")
        try:
            report = search(config, fixed=fixed)
        except ValueError:
            break
        found = report.plans[0].parallel
        if len(set(Stages.of(MODEL, found).layers)) > 1 and all(plan.parallel.stage_layers for plan in report.plans):
            layers = Stages.of(MODEL, found).layers
            assert layers[0] > layers[-1]
            return
    pytest.fail("there is no such size")


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
)  # fmt: skip
def test_the_types_of_a_stage_are_those_of_its_ranks(tp, cp, pp, dp, per_node, nodes):
    kinds = [slowed(1 / (2 + i)) for i in range(len(nodes))]
    others = tuple(OtherDevices(n, kind) for n, kind in zip(nodes, kinds, strict=True))
    stages = Stages((1,) * pp, (dp,) * pp, tp, 1, cp)
    total = max(sum(nodes) + 1, -(-stages.num_ranks // per_node))
    topology = Topology.from_config(ClusterConfig("c", total, per_node, FAST, other_devices=others), stages.num_ranks)
    for view in (topology, topology.placed(range(stages.num_ranks))):
        for stage in range(pp):
            teams = [rank // tp for rank in stages.data_group(stage)]
            expected = {view.device_of(rank) for team in teams for rank in stages.ranks_of(team)}
            assert set(stage_devices(stages, view, stage)) == expected


@pytest.mark.parametrize("gbps", [0.05, 10.0])
def test_bounds_and_memory_are_those_of_each_layout(gbps: float) -> None:
    config = config_of(OtherDevices(1, slowed(0.3, 0.01, 0.1)), nodes=3, link=LinkConfig(gbps, 1e-5))
    measured, topology = rate(config.cluster, 6), Topology.from_config(config.cluster)
    for whole, reason in blocks(config, 6, (), True):
        for block, where in () if reason else _places(whole, topology):
            view = outlook(config, block, where, measured)
            limits = np.broadcast_to(view.limit_gib, block.shape)
            for number in range(0, block.size, 17):
                parallel, size = block.layout(number)
                own = with_layout(config, parallel, size)
                plan = predict(own, parallel, measured)
                assert np.ravel(view.peak_gib)[number] == pytest.approx(plan.peak_gib, rel=1e-12), plan.layout
                assert np.ravel(limits)[number] == plan.limit_gib, plan.layout
                assert np.ravel(view.least_s)[number] <= plan.step_s, plan.layout
                assert least_step_s(own, measured) <= plan.step_s, plan.layout


def test_mfu_is_of_the_sum_of_all_peaks() -> None:
    config = config_of(OtherDevices(1, slowed(0.25)))
    plan = predict(config, ParallelConfig(8))
    assert plan.mfu == pytest.approx(model_flops(config) / plan.step_s / (6 * FAST.tflops * 1e12 * (1 + 0.25 / 3)))


def test_the_file_of_a_mixed_cluster(tmp_path) -> None:
    config = load(["configs/cluster/mixed-h100-a100.yaml"])
    (other,) = config.cluster.other_devices
    assert (other.nodes, other.device.name, other.device.efficiency) == (
        2,
        "a100-80gb-sxm",
        config.cluster.device.efficiency,
    )
    topology = Topology.from_config(config.cluster)
    assert topology.describe().startswith(
        "mixed-h100-a100: 2 nodes × 8 h100-80gb-sxm (72 GiB) + 2 nodes × 8 a100-80gb-sxm (72 GiB), 229 GB/s"
    )
    assert not topology.regular
    assert [topology.device_of(rank).name[:4] for rank in (15, 16)] == ["h100", "a100"]
    assert Topology.from_config(config.cluster, 16).regular
    save(config, tmp_path / "saved.yaml")
    assert load([str(tmp_path / "saved.yaml")]) == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[{nodes: 2, device: {}}]", "has 2 nodes but cluster.nodes=2"),
        ("[{nodes: 1, device: {}}, {nodes: 4, device: {}}]", "has 5 nodes but cluster.nodes=2"),
        ("[{nodes: 0, device: {}}]", r"other_devices\[0\].nodes=0 must be at least 1"),
        ("[{nodes: 1, device: {nam: x}}]", r"other_devices\[0\].device.nam is unknown"),
        ("[{nodes: 1, device: {tflops: x}}]", r"device.tflops=x must be a number"),
        ("[{nodes: 1, device: {tflops: -1}}]", r"other_devices\[0\].device.tflops=-1 must be positive"),
        ("[{nodes: 1, device: {backend: nccl}}]", "all ranks need the same"),
        ("[{nodes: 1.5, device: {}}]", "nodes=1.5 must be a whole number"),
        ("[1]", "must have nodes and device"),
    ],
)
def test_what_cannot_be_is_one_line(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Topology.from_config(load(["cluster.nodes=2", f"cluster.other_devices={value}"]).cluster)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="one machine"):
        Topology.from_config(replace(config_of(OtherDevices(1, FAST)).cluster, shared_cores=True))


def test_a_name_that_is_nearly_known_is_asked_about() -> None:
    cluster = ["configs/model/llama-8b.yaml", "configs/cluster/dgx-h100-4.yaml", "train.dtype=bfloat16"]
    cluster += ["cluster.nodes=2", "batch.global_size=16", "batch.microbatch_size=1"]
    smx = "cluster.other_devices=[{nodes: 1, device: {name: a100-80gb-smx%s}}]"
    with pytest.raises(ValueError, match=r"\[0\].device.name=a100-80gb-smx is unknown; did you mean a100-80gb-sxm"):
        search(load([*cluster, smx % ""]))
    with pytest.raises(ValueError, match=r"cluster.device.name=h100-80gb-smx is unknown; did you mean h100-80gb-sxm"):
        search(load([*cluster, "cluster.device.name=h100-80gb-smx"]))
    check_device_names(load([*cluster, smx % ", tflops: 300"]))
    check_device_names(load([*cluster, smx % "", "train.dtype=float32"]))
    check_device_names(load([*cluster, "cluster.device.name=ours"]))
