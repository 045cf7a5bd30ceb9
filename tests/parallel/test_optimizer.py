"""AdamW against torch's, and bits that do not depend on where an element lies."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch

from trainsys.config import OptimConfig
from trainsys.parallel.optimizer import Update, adamw, clip_scale, learning_rate
from trainsys.parallel.state import FlatState, master_dtype
from trainsys.space.layout import Piece

CONFIG = OptimConfig(lr=3e-3, warmup_steps=4, clip=1.0)


def state(values: torch.Tensor) -> FlatState:
    made = FlatState([Piece(0, 0, 0, values.numel())], values.dtype, torch.device("cpu"))
    made.slots["master"].copy_(values)
    return made


def grads(n: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(n, generator=generator) * 10.0 ** torch.randint(-6, 2, (n,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_torch(dtype: torch.dtype) -> None:
    n, steps = 1000, 20
    start = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    ours, theirs = state(start), torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW(
        [theirs], lr=1.0, betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay
    )
    for step in range(steps):
        grad = grads(n, step).to(dtype)
        norm = grad.norm().item()
        lr, scale = learning_rate(CONFIG, step, steps), clip_scale(CONFIG, norm)
        theirs.grad = grad.clone()
        torch.nn.utils.clip_grad_norm_([theirs], CONFIG.clip)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        adamw(CONFIG, ours.slots, grad, Update(step, lr, scale))
    torch.testing.assert_close(ours.slots["master"], theirs.detach(), rtol=1e-6, atol=1e-6)
    moved = (theirs.detach() - start).abs().max().item()
    assert moved > 1e-2, "the comparison above would also hold without a step"
    for slot in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(ours.slots[slot], optimizer.state[theirs][slot], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shift", range(1, 17))
def test_bits_do_not_depend_on_the_place(shift: int) -> None:
    """Vector loops and their scalar tails must round alike: the same elements, moved by 1 to 16 places."""
    n = 61
    start = torch.randn(n, generator=torch.Generator().manual_seed(0))
    here, there = state(start), state(torch.cat([torch.ones(shift), start]))
    for step in range(3):
        grad = grads(n, step)
        adamw(CONFIG, here.slots, grad.clone(), Update(step, 1e-3, 0.37))
        adamw(CONFIG, there.slots, torch.cat([torch.full((shift,), 0.3), grad]), Update(step, 1e-3, 0.37))
    for slot, values in here.slots.items():
        assert torch.equal(values, there.slots[slot][shift:]), slot


def test_learning_rate() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    assert [learning_rate(config, s, 12) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate(config, 4, 13) == 1.0
    assert learning_rate(config, 8, 13) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + cos(pi / 2)))
    assert learning_rate(config, 12, 13) == learning_rate(config, 50, 13) == pytest.approx(0.1)  # 12 is the last step


def test_clipping() -> None:
    assert clip_scale(CONFIG, 0.5) == 1.0
    assert clip_scale(CONFIG, 4.0) == pytest.approx(0.25, rel=1e-6)
    assert clip_scale(OptimConfig(clip=0.0), 1e9) == 1.0


def test_masters_are_at_least_float32() -> None:
    assert master_dtype(torch.bfloat16) == master_dtype(torch.float32) == torch.float32
    assert master_dtype(torch.float64) == torch.float64
