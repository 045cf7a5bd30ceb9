"""The performance model's parts against physics, closed forms and micro-benchmarks."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsys.perf.collective import all_reduce_s, gather_s
from trainsys.perf.device import catalogue, device
from trainsys.perf.gemm import gemm_s
from trainsys.perf.job import Degrees, Fabric, Job, Shape
from trainsys.perf.layer import layer_cost
from trainsys.perf.memory import GIB, memory_cost
from trainsys.perf.software import software
from trainsys.perf.step import step_cost

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"
A100 = device("a100-80gb-sxm")
GPT = Shape(24, 2048, 8192, 16, 16, 128, 50304, gated=False, tied=True)


def job(shape: Shape = GPT, software_name: str = "megatron-2021", **changes: object) -> Job:
    base = Job(shape, Degrees(), A100, Fabric(8, 200.0), software(software_name), 2048, 4, 64)
    return replace(base, **changes)  # type: ignore[arg-type]


@given(st.sampled_from(sorted(catalogue())), *[st.integers(1, 20000)] * 3)
def test_no_product_is_faster_than_the_data_sheet(name: str, m: int, n: int, k: int) -> None:
    d = device(name)
    assert gemm_s(d, m, n, k, "fp16") >= max(
        2 * m * n * k / (d.tflops * 1e12), 2 * (m * k + k * n) / (d.memory_gbps * 1e9)
    )


def test_one_tile_too_many_costs_a_wave() -> None:
    """108 units: 27 x 4 tiles of 128 x 256 are a wave, 27 x 5 need another."""
    full, more = (gemm_s(A100, 27 * 256, tiles * 128, 8192, "bf16") for tiles in (4, 5))
    assert more > 1.15 * full
    assert gemm_s(A100, 27 * 256, 8 * 128, 8192, "bf16") == pytest.approx(2 * full, rel=0.02)


def test_odd_rows_are_slow() -> None:
    assert gemm_s(A100, 8192, 8191, 8192, "bf16") > 1.8 * gemm_s(A100, 8192, 8192, 8192, "bf16")


def test_all_reduces_follow_the_measured_ones() -> None:
    """nccl-tests' times of 2 to 8 A100 in a node, from 4 MiB on."""
    errors = []
    with (PUBLISHED / "collectives.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["device"] == "a100-sxm" and int(row["bytes"]) >= 4 << 20:
                d = Degrees(tp=int(row["count"]))
                found = all_reduce_s(job(degrees=d, shape=replace(GPT, heads=840)), int(row["bytes"]), d.tp)
                errors.append(abs(found / (float(row["us"]) * 1e-6) - 1))
    assert len(errors) > 50
    assert sum(errors) / len(errors) < 0.12
    assert max(errors) < 0.4


def test_a_ring_between_nodes_uses_all_adapters_and_a_pair_uses_one() -> None:
    wide = job(degrees=Degrees(dp=16), global_batch=64)
    pairs = job(degrees=Degrees(dp=2, tp=8))
    size = 1 << 30
    assert gather_s(pairs, size, 2, 8) > 4 * gather_s(wide, size, 16)


@pytest.mark.parametrize(("pp", "vp"), [(2, 1), (4, 1), (4, 3)])
def test_the_bubble_is_the_published_one(pp: int, vp: int) -> None:
    """(P - 1)/vp stages (arXiv:2104.04473, section 2.2)."""
    found = step_cost(job(degrees=Degrees(pp=pp, vp=vp), software=software("megatron-core"), precision="bf16"))
    stage = found.layers_s / 16
    assert found.bubble_s == pytest.approx((pp - 1) / vp * stage)


def test_recomputation_repeats_the_forward() -> None:
    none, core, full = (layer_cost(job(recompute=r)).again_s(job(recompute=r)) for r in ("none", "selective", "full"))
    layer = layer_cost(job())
    assert none == 0
    assert core == layer.core_s[0]
    assert full == layer.forward_s


def test_activations_are_the_published_closed_form() -> None:
    """Of a layer without parallelism: s·b·h·(34 + 5·a·s/h) bytes (arXiv:2205.05198, equation 1)."""
    j = job(recompute="none", degrees=Degrees())
    closed = 2048 * 4 * 2048 * (34 + 5 * 16 * 2048 / 2048)
    two, one = (memory_cost(replace(j, shape=replace(GPT, layers=n))).activations for n in (2, 1))
    assert (two - one) * GIB == pytest.approx(closed * (1 + j.software.slack))


def test_zero_spreads_states_then_everything() -> None:
    weights = [memory_cost(job(degrees=Degrees(dp=16, zero=zero))).weights for zero in (0, 1, 3)]
    traits, params = software("megatron-2021"), weights[0] / (2 + 4 + 12)
    assert weights[1] == pytest.approx(params * (2 + 4 + traits.state_bytes / 16))
    assert weights[2] == pytest.approx(weights[0] / 16)


def test_experts_cost_their_own_replicas_gradients_only() -> None:
    """As many tokens, experts 8 times as many: the exchange grows with what a rank holds, not with ep alone."""
    moe = Shape(8, 2048, 0, 16, 16, 128, 50304, True, False, experts=64, topk=4, expert_ffn=1024)
    spread = [step_cost(job(moe, "megatron-core", degrees=Degrees(dp=16, ep=ep, zero=1))) for ep in (1, 16)]
    assert spread[0].update_s == pytest.approx(spread[1].update_s, rel=0.01)
    assert spread[0].layer.experts_s == 0
    assert spread[1].layer.experts_s > 0
    assert spread[1].gradients_s < spread[0].gradients_s


def test_an_unknown_device_or_kernel_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"device 'a900' is unknown; known: a100-80gb-sxm, .*devices\.yaml"):
        device("a900")
    with pytest.raises(ValueError, match="device t4: no rate of attention kernel 'cudnn'; known: none"):
        device("t4").attention_flops("cudnn")
    with pytest.raises(ValueError, match="software 'x' is unknown; known: megatron-2021, "):
        software("x")
