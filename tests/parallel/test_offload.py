"""Activations kept by the host: the same bits, really moved, and gone from the device meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.runs import assert_same_bits, run_all, run_config
from trainsys.models.registry import build
from trainsys.parallel.offload import HostCopies
from trainsys.parallel.stage import Batch, StageRunner, apply_recompute
from trainsys.testing import RankPool

GRIDS: list[dict[str, Any]] = [
    {"dp": 2, "zero": 1, "recompute": "full"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "zero": 2},
    {"pp": 2, "dp": 2, "zero": 3, "recompute": "full"},
    {"tp": 2, "pp": 2, "sequence_parallel": True},
    {"cp": 2, "dp": 2, "ep": 2, "zero": 1},
]


@pytest.mark.parametrize("grid", [GRIDS], ids=["all"])
def test_the_bits_are_those_of_keeping_them(ranks: RankPool, grid: list[dict[str, Any]]) -> None:
    model = {"num_layers": 4, "family": "mixtral", "num_experts": 4, "router_aux_coef": 0.1}
    pairs = [run_config("float32", model, 4, **g, **more) for g in grid for more in ({}, {"offload": "activations"})]
    outcomes = run_all(ranks, 4, pairs)
    for kept, moved in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert_same_bits(moved, kept)


def runner(offload: bool, recompute: bool) -> StageRunner:
    """A middle stage of two layers."""
    torch.manual_seed(0)
    config = run_config("float32", {"num_layers": 4}).model
    model = build(config, range(1, 3))
    if recompute:
        apply_recompute(model)
    names = [name for name, _ in model.named_parameters()]
    batch = Batch(0, {mb: (torch.zeros(1, 16, dtype=torch.long),) * 2 + ((mb,),) for mb in range(3)})  # type: ignore[misc]
    stage = StageRunner(
        model,
        lambda mb: (1, 16, 32),
        lambda mb: 16,
        0,
        128,
        None,
        None,
        lambda mb, grads: None,
        {range(1, 3): names},
        offload=offload,
    )
    stage.begin(batch)
    return stage


@pytest.mark.parametrize("recompute", [False, True])
def test_what_is_saved_leaves_the_device(recompute: bool) -> None:
    """Of three microbatches under way nothing stays: neither what autograd saved nor the inputs."""
    kept, moved = runner(False, recompute), runner(True, recompute)
    inputs = [torch.randn(1, 16, 32) for _ in range(3)]
    ours = [x.clone() for x in inputs]
    for mb in range(3):
        assert torch.equal(moved.forward(mb, ours[mb]), kept.forward(mb, inputs[mb].clone()))  # type: ignore[arg-type]
    assert [x.untyped_storage().nbytes() for x in ours] == [0, 0, 0]
    assert moved.host is not None
    boundary = 16 * 32 * 4
    assert moved.host.moved_bytes == 3 * 2 * boundary if recompute else moved.host.moved_bytes > 3 * 8 * boundary
    for mb in range(3):
        grad = torch.ones(1, 16, 32)
        assert torch.equal(moved.backward(mb, grad.clone()), kept.backward(mb, grad))  # type: ignore[arg-type]


def test_each_tensor_moves_once_and_weights_stay() -> None:
    weight = torch.randn(8, 8, requires_grad=True)
    copies = HostCopies([weight])
    x = torch.randn(4, 8, requires_grad=True)
    with copies.saving():
        y = (x @ weight + x @ weight.T).exp()
    assert copies.moved_bytes == 2 * 4 * 8 * 4  # x of two products, and the result of exp
    before = weight.grad, x.detach().clone()
    y.sum().backward()
    expected = torch.autograd.grad((before[1].requires_grad_() @ weight + before[1] @ weight.T).exp().sum(), before[1])
    assert torch.equal(x.grad, expected[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_planner_counts_the_bytes_that_move(recompute: str) -> None:
    from dataclasses import replace

    from trainsys.planner.memory import kept_bytes
    from trainsys.planner.stages import Stages

    config = run_config("float32", {"num_layers": 4}, pp=2, recompute=recompute)
    stage = runner(True, recompute == "full")
    stage.forward(0, torch.randn(1, 16, 32))
    assert stage.host is not None
    config = replace(config, parallel=replace(config.parallel, offload="activations"))
    counted = kept_bytes(config, Stages.of(config.model, config.parallel), 2, False)
    assert stage.host.moved_bytes == pytest.approx(counted, rel=0.15)
