"""What torch 2.13 does wrong when it splits a backward, beside ours on the same modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import _backward as peer
from torch.utils.checkpoint import checkpoint

from benchmarks._torch_runtime import world
from trainsys.parallel.split import Deferred, Halves, split_backward
from trainsys.testing import RankPool

CALLS: Counter[str] = Counter()


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        CALLS["forward"] += 1
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        CALLS["backward"] += 1
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(0)


class Scale(nn.Module):
    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.scale, self.recompute = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64)), recompute

    def forward(self, x: Tensor) -> Tensor:
        run = _Scale.apply
        return checkpoint(run, x, self.scale, use_reentrant=False) if self.recompute else run(x, self.scale)


def model(recompute: bool) -> nn.Module:
    torch.manual_seed(0)
    CALLS.clear()
    return nn.Sequential(nn.Linear(4, 4), Scale(recompute), nn.Linear(4, 4)).double()


def given() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, 4, dtype=torch.float64, requires_grad=True)


def whole(recompute: bool) -> list[Tensor]:
    """Every parameter's gradient from one backward."""
    one = model(recompute)
    one(given()).square().sum().backward()
    return [p.grad for p in one.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_python_backward_runs_once_and_a_recomputation_too(recompute: bool) -> None:
    expected, one, deferred = whole(recompute), model(recompute), Deferred()
    split_backward(one, deferred)
    one(given()).square().sum().backward()
    params = dict(one.named_parameters())
    grads = Halves({name: p.grad for name, p in params.items()}, deferred.take()).finish(params)
    assert {"forward": 1 + recompute, "backward": 1} == CALLS
    torch.testing.assert_close([grads[name] for name in params], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_torch_runs_both_twice(recompute: bool) -> None:
    expected, one, x = whole(recompute), model(recompute), given()
    out = one(x).square().sum()
    _, groups = peer.stage_backward_input([out], None, [x], one.parameters())
    peer.stage_backward_weight(one.parameters(), groups)
    torch.testing.assert_close([p.grad for p in one.parameters()], expected, rtol=1e-12, atol=0)
    if CALLS["backward"] == 1:
        pytest.skip("this torch runs it once")
    assert {"forward": 1 + 2 * recompute, "backward": 2} == CALLS


def nested(rank: int, world_size: int, store: Any) -> int:
    """How many of 6 parameters have no gradient after torch's I and W; its sharded modules free weights in between."""
    with world(store, rank, world_size):
        mesh = init_device_mesh("cpu", (world_size,))
        one = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).double()
        for module in (*one, one):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        x = given()
        out = one(x).square().sum()
        _, groups = peer.stage_backward_input([out], None, [x], one.parameters())
        peer.stage_backward_weight(one.parameters(), groups)
        return sum(p.grad is None for p in one.parameters())


def test_torch_loses_the_gradients_of_nested_sharded_weights(ranks: RankPool) -> None:
    """Ours under ZeRO-3 has all of them (test_schedules.py, test_torch_peer.py), and stops where one is missing."""
    (lost,) = ranks.run(nested, 1)
    if not lost:
        pytest.skip("this torch keeps them")
    assert lost == 6
