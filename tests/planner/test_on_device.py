"""Devices of the catalogue: the planner's own path and the performance model say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainsys.config import BatchConfig, ParallelConfig, RunConfig, load
from trainsys.perf.device import device
from trainsys.perf.job import Degrees, Fabric, Job, Shape
from trainsys.perf.software import software
from trainsys.perf.step import step_cost
from trainsys.planner.on_device import known_device
from trainsys.planner.predict import predict


@pytest.fixture(scope="module")
def llama() -> RunConfig:
    """Llama 8B on 16 A100."""
    files = ["configs/model/llama-8b.yaml", "configs/cluster/dgx-a100-2.yaml", "train.dtype=bfloat16"]
    return replace(load(files), batch=BatchConfig(64, 1, 4096))


LAYOUTS = [
    {"dp": 16},
    {"dp": 8, "tp": 2},
    {"dp": 4, "pp": 4},
    {"dp": 2, "tp": 8},
    {"dp": 2, "tp": 2, "pp": 4, "vp": 2, "schedule": "interleaved"},
    {"dp": 8, "tp": 2, "recompute": "full"},
    {"dp": 4, "tp": 4, "sequence_parallel": True},
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_performance_model(llama: RunConfig, layout: dict[str, object]) -> None:
    """Both walk the same layers; they differ in how links and the exchange of gradients are modelled."""
    parallel = ParallelConfig(reduction="fast", **layout)  # type: ignore[arg-type]
    plan = predict(llama, parallel)
    shape = Shape(32, 4096, 14336, 32, 8, 128, 128256, gated=True, tied=False)
    degrees = Degrees(dp=parallel.dp, tp=parallel.tp, pp=parallel.pp, vp=parallel.vp)
    job = Job(
        shape, degrees, device("a100-80gb-sxm"), Fabric(8, 200.0), software("trainsys"), 4096, 1, 64,
        recompute=parallel.recompute, sequence_parallel=parallel.sequence_parallel,
    )  # fmt: skip
    assert plan.step_s == pytest.approx(step_cost(job).step_s, rel=0.15), plan.layout


def test_a_declared_device_keeps_its_one_rate(llama: RunConfig) -> None:
    assert known_device(llama) is device("a100-80gb-sxm")
    assert known_device(replace(llama, train=replace(llama.train, dtype="float32"))) is None
    declared = replace(llama.cluster, device=replace(llama.cluster.device, name="mine", efficiency=0.5))
    mine = replace(llama, cluster=declared)
    assert known_device(mine) is None
    parallel = ParallelConfig(dp=16, reduction="fast")
    slower = replace(mine, cluster=replace(declared, device=replace(declared.device, efficiency=0.25)))
    assert predict(slower, parallel).compute_s == pytest.approx(2 * predict(mine, parallel).compute_s)


def test_small_matrices_cost_more_per_flop(llama: RunConfig) -> None:
    """One declared rate cannot say it: tp 8 cuts the same FLOPs into shorter products."""
    per_flop = [predict(llama, ParallelConfig(dp=16 // tp, tp=tp, reduction="fast")).compute_s for tp in (1, 8)]
    assert per_flop[1] > 1.05 * per_flop[0]


def test_tp_cuts_experts_too() -> None:
    """As many FLOPs per rank, in shorter products, and the passes over whole tokens: slower, never twice."""
    files = ["configs/model/mixtral-8x7b.yaml", "configs/cluster/dgx-h100-4.yaml", "train.dtype=bfloat16"]
    config = replace(load(files), batch=BatchConfig(64, 1, 4096))
    one, eight = (
        predict(config, ParallelConfig(dp=32 // tp, tp=tp, zero=1, reduction="fast")).compute_s for tp in (1, 8)
    )
    assert one < eight < 2 * one


@pytest.mark.parametrize("name", ["h200", "b200", "gb300", "mi300x"])
def test_every_device_of_the_catalogue_can_be_planned_for(llama: RunConfig, name: str) -> None:
    cluster = replace(llama.cluster, device=replace(llama.cluster.device, name=name))
    assert predict(replace(llama, cluster=cluster), ParallelConfig(dp=16, reduction="fast")).compute_s > 0


def test_a_device_without_bfloat16_is_refused(llama: RunConfig) -> None:
    cluster = replace(llama.cluster, device=replace(llama.cluster.device, name="t4"))
    with pytest.raises(ValueError, match=r"t4 has no bfloat16; set train\.dtype=float32"):
        predict(replace(llama, cluster=cluster), ParallelConfig(dp=16, reduction="fast"))
