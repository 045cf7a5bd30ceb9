"""An emulated device takes as long as products would, and has their shapes."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch
import torch.nn.functional as F

from trainsys.testing.emulated_device import EmulatedDevice


def test_products_take_their_time_forward_and_backward() -> None:
    linear, x = torch.nn.Linear(64, 32, bias=False), torch.ones(16, 64, requires_grad=True)
    once_s = 2 * 16 * 64 * 32 / 2e6
    with EmulatedDevice(2e6) as device:
        start = perf_counter()
        out = linear(x)
        assert device.asked_s == pytest.approx(once_s)
        out.sum().backward()
        assert perf_counter() - start > 0.99 * 3 * once_s
    assert device.asked_s == pytest.approx(3 * once_s)  # the backward has two products
    assert out.shape == (16, 32)
    assert not out.any()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    assert linear(x).any(), "outside everything is real"


def test_attention_is_counted_over_all_pairs_of_positions() -> None:
    q, k, v = (torch.ones(1, 2, 8, 4, requires_grad=True) for _ in range(3))
    with EmulatedDevice(1e5) as device:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert device.asked_s == pytest.approx(4 * 2 * 8 * 8 * 4 / 1e5)
        out.sum().backward()
    assert device.asked_s == pytest.approx(12 * 2 * 8 * 8 * 4 / 1e5)
    assert out.shape == q.shape
    assert q.grad is not None
