"""The family linear_llama: its convolution, its documents, what the planner counts, and that it learns."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainsys.config import BatchConfig, ModelConfig, RunConfig
from trainsys.models.geometry import forward_flops, resolve
from trainsys.models.linear_llama import LinearAttention, short_conv
from trainsys.models.linear_llama_geometry import is_softmax
from trainsys.models.registry import build
from trainsys.planner.memory import layer_bytes

DECAYS = ("none", "scalar", "diagonal", "delta")


def config_of(decay: str, kv_heads: int = 4, layers: int = 1, every: int = 0, conv: int = 4) -> ModelConfig:
    return ModelConfig(
        "linear_llama", 64, dim=64, num_layers=layers, num_heads=4, num_kv_heads=kv_heads, head_dim=32, ffn_dim=128,
        max_seq_len=256, decay=decay, softmax_every=every, conv_width=conv,  # type: ignore[arg-type]
    )  # fmt: skip


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("width", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_short_conv_is_a_convolution(length: int, width: int) -> None:
    x, weight = random(2, length, 5), random(5, width)
    padded = torch.nn.functional.pad(x.mT, (width - 1, 0))
    want = x + torch.nn.functional.conv1d(padded, weight.flip(1).unsqueeze(1), groups=5).mT
    torch.testing.assert_close(short_conv(x, weight), want)
    for cut in range(length + 1):  # in two parts, the second of which is told what was before

        def halo(own: Tensor, back: int, cut: int = cut) -> Tensor:
            return torch.cat((x.new_zeros(2, back, 5), x[:, :cut]), dim=1)[:, cut : cut + back]

        parts = torch.cat((short_conv(x[:, :cut], weight), short_conv(x[:, cut:], weight, halo)), dim=1)
        torch.testing.assert_close(parts, want)


@pytest.mark.parametrize("decay", DECAYS)
def test_packed_documents_do_not_see_each_other(decay: str) -> None:
    torch.manual_seed(0)
    layer, x = LinearAttention(resolve(config_of(decay))).double(), random(1, 20, 64).double()
    begins = [0, 1, 7, 20]
    layer.starts = torch.zeros(1, 20, dtype=torch.bool)
    layer.starts[0, begins[:-1]] = True
    packed = layer(x)
    layer.starts = None
    torch.testing.assert_close(packed, torch.cat([layer(x[:, a:b]) for a, b in pairwise(begins)], dim=1))


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("decay", DECAYS)
def test_flops_are_those_of_the_products(decay: str, kv_heads: int) -> None:
    """Counted, but for the convolution and the triangular solve, which torch does not count."""
    config, length = resolve(config_of(decay, kv_heads)), 128
    with FlopCounterMode(display=False) as counter:
        build(config, range(1))(random(1, length, 64))
    d, kv = 32, kv_heads
    convolution = 2 * 4 * (4 + 2 * kv) * d
    solve = 64 * 2 * d * kv if decay == "delta" else 0
    got = forward_flops(config, 0, length) - convolution - solve
    if decay == "diagonal":  # scores are products of one row each
        assert got == pytest.approx(counter.get_total_flops() / length)
    else:
        assert got == pytest.approx(counter.get_total_flops() / length, rel=0.02)


def test_only_softmax_layers_grow_with_the_sequence() -> None:
    config = resolve(config_of("scalar", layers=6, every=3))
    assert [is_softmax(config, i) for i in range(6)] == [False, False, True] * 2
    for layer in range(6):
        growth = forward_flops(config, layer, 2048) - forward_flops(config, layer, 1024)
        assert growth == (4 * 1024 * 128 if is_softmax(config, layer) else 0)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("decay", DECAYS)
def test_the_planner_counts_what_is_kept(decay: str, kv_heads: int) -> None:
    config, length, kept = resolve(config_of(decay, kv_heads)), 256, dict[int, int]()
    layer = build(config, range(1))
    weights = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    alive = []

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            alive.append(storage)
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        out = layer(random(1, length, 64).requires_grad_())
    assert out.requires_grad
    planned = layer_bytes(RunConfig(model=config, batch=BatchConfig(1, 1, length)), tp=1)
    assert sum(kept.values()) == pytest.approx(planned, rel=0.03)


def test_it_learns() -> None:
    """To say again what was said three positions ago."""
    torch.manual_seed(0)
    model = build(config_of("delta", layers=2, every=2), range(-1, 3))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(40):
        tokens = torch.randint(16, (4, 33))
        loss = torch.nn.functional.cross_entropy(model(tokens)[:, 3:].flatten(0, 1), tokens[:, :-3].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
