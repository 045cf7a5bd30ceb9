"""The module breakdown adds up, and its parts are those of the models that it is taken from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainsys.config import BatchConfig, ParallelConfig, RunConfig, load
from trainsys.perf.device import device
from trainsys.planner.modules import breakdown
from trainsys.planner.on_device import run_seconds, stage_modules
from trainsys.planner.parts import step_parts
from trainsys.planner.predict import predict
from trainsys.planner.stages import Stages

FAMILIES = ["llama-tiny", "gpt2-tiny", "qwen3-tiny", "mixtral-tiny", "qwen3-moe-tiny"]
LAYOUTS = [
    {"dp": 4, "zero": 1},
    {"dp": 2, "tp": 2, "sequence_parallel": True},
    {"pp": 4},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "recompute": "full"},
    {"dp": 4, "zero": 3, "recompute": "full"},
    {"dp": 2, "cp": 2},
]


def tiny(family: str, name: str = "cpu", dtype: str = "float32") -> RunConfig:
    files = [f"configs/model/{family}.yaml", "configs/cluster/local-4.yaml", f"train.dtype={dtype}"]
    return load([*files, "cluster.device.tflops=1", "cluster.shared_cores=false", f"cluster.device.name={name}"])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "dtype"), [("cpu", "float32"), ("a100-80gb-sxm", "bfloat16")])
def test_modules_add_up_to_the_step_and_the_peak(family: str, layout: dict[str, object], name: str, dtype: str) -> None:
    config = tiny(family, name, dtype)
    plan = predict(config, ParallelConfig(**layout))  # type: ignore[arg-type]
    rows = {row.name: row for row in breakdown(config, plan)}
    assert sum(row.step_s for row in rows.values()) == pytest.approx(plan.step_s, rel=1e-9)
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    assert sum(row.gib for row in rows.values()) == pytest.approx(plan.peak_gib, rel=1e-9)
    assert all(row.gib >= -1e-9 for row in rows.values())
    assert rows["mlp"].title == ("experts" if config.model.num_experts else "MLP")
    assert ("recomputation" in rows) == (plan.parallel.recompute == "full")
    assert abs(rows["transition"].gib if "transition" in rows else 0.0) == pytest.approx(
        plan.memory.transition, abs=1e-9
    )


def test_parts_of_a_step_add_up(large: RunConfig) -> None:
    for layout in ({"dp": 8}, {"pp": 8}, {"dp": 2, "tp": 4}):
        plan = predict(large, ParallelConfig(reduction="fast", **layout))
        assert sum(step_parts(plan).values()) == pytest.approx(plan.step_s, rel=1e-12)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("model", ["llama-8b", "mixtral-8x7b"])
def test_modules_of_a_known_device_are_its_seconds(model: str, recompute: str) -> None:
    """On every stage, what `run_seconds` has in all; and of them the shares of a plan's computing."""
    files = [f"configs/model/{model}.yaml", "configs/cluster/dgx-h100-4.yaml", "train.dtype=bfloat16"]
    parallel = ParallelConfig(dp=4, tp=2, pp=4, reduction="fast", recompute=recompute)  # type: ignore[arg-type]
    config = replace(load(files), batch=BatchConfig(64, 1, 4096), parallel=parallel)
    stages, h100 = Stages.of(config.model, parallel), device("h100-80gb-sxm")
    forward, backward = run_seconds(config, stages, h100)
    for stage in range(4):
        modules = stage_modules(config, stages, h100, stage)
        assert sum(modules.values()) == pytest.approx(forward[stage] + backward[stage])
        assert (modules["embedding"] > 0, modules["head"] > 0) == (stage == 0, stage == 3)
    plan, modules = predict(config, parallel), stage_modules(config, stages, h100, 3)
    rows = {row.name: row.step_s for row in breakdown(config, plan)}
    microbatches = 64 // 4
    assert rows["attention"] == pytest.approx(microbatches * modules["attention"], rel=1e-6)
    assert rows["head"] == pytest.approx(microbatches * modules["head"], rel=1e-6)


def test_flops_go_where_the_matrices_are() -> None:
    """A feed-forward twice as wide takes twice the time, and nothing else more."""
    config = tiny("llama-tiny")
    wide = replace(config, model=replace(config.model, ffn_dim=704))
    narrow = replace(config, model=replace(config.model, ffn_dim=352))
    a, b = ({row.name: row for row in breakdown(c, predict(c, ParallelConfig(dp=4)))} for c in (narrow, wide))
    assert b["mlp"].step_s == pytest.approx(2 * a["mlp"].step_s)
    assert b["attention"].step_s == pytest.approx(a["attention"].step_s)
    assert b["head"].step_s == pytest.approx(a["head"].step_s)
    assert b["mlp"].gib > 1.9 * a["mlp"].gib
