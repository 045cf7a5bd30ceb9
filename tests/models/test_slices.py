"""Modules and geometry say the same; slices chain to the whole model; heads follow the local weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from trainsys.config import ModelConfig
from trainsys.models.geometry import FAMILIES, logical_name, tensors
from trainsys.models.registry import build

L = 3
CONFIGS = [
    ModelConfig(family, 96, dim=32, num_layers=L, num_heads=4, num_kv_heads=kv, max_seq_len=16, tied=tied)
    for family, kv in (("llama", 2), ("llama", 0), ("gpt2", 0), ("qwen3", 2))
    for tied in (False, True)
]
CONFIGS += [
    ModelConfig(
        family, 96, dim=32, num_layers=L, num_heads=4, num_kv_heads=2, max_seq_len=16, num_experts=5,
        expert_ffn_dim=24, shared_ffn_dim=shared,
    )
    for family, shared in (("mixtral", 0), ("qwen3_moe", 16))
]  # fmt: skip
CONFIGS += [
    ModelConfig(
        "linear_llama", 96, dim=32, num_layers=L, num_heads=4, num_kv_heads=kv, max_seq_len=16, decay=decay,
        softmax_every=every, conv_width=width,
    )
    for decay, kv, every, width in (("none", 4, 0, 0), ("scalar", 2, 2, 4), ("diagonal", 2, 0, 3), ("delta", 4, 3, 4))
]  # fmt: skip
CONFIGS += [dataclasses.replace(c, head_dim=12) for c in CONFIGS if c.family != "gpt2" and c.num_kv_heads]  # 48 ≠ dim
WHOLE = range(-1, L + 1)
SLICES = [range(a, b) for a in WHOLE for b in range(a + 1, L + 2)]
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.family}-{c.decay}-kv{c.num_kv_heads}-head{c.head_dim}-tied{c.tied:d}"
)


def tokens(batch: int = 2, seq_len: int = 16) -> torch.Tensor:
    return torch.randint(96, (batch, seq_len), generator=torch.Generator().manual_seed(3))


def test_every_family_is_covered() -> None:
    assert {c.family for c in CONFIGS} == set(FAMILIES)


@every_config
def test_state_dict_is_the_geometry_for_every_slice(config: ModelConfig) -> None:
    for blocks in SLICES:
        with torch.device("meta"):
            state = {name: tuple(p.shape) for name, p in build(config, blocks).state_dict().items()}
        want = {t.name: t.shape for t in tensors(config) if t.block in blocks}
        if config.tied and L in blocks:
            want["output.weight"] = (config.vocab_size, config.dim)
        assert state == want
        assert {logical_name(config, name) for name in state} == {
            t.name for t in tensors(config) if set(t.blocks) & set(blocks)
        }


@every_config
def test_chained_slices_equal_the_whole(config: ModelConfig) -> None:
    whole = build(config, WHOLE)
    want = whole(tokens())
    assert want.shape == (2, 16, 96)
    for cuts in ([0], [L], [1, 2], [0, 1, 2, 3]):
        x = tokens()
        for a, b in zip([-1, *cuts], [*cuts, L + 1], strict=True):
            part = build(config, range(a, b))
            part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
            x = part(x)
        assert torch.equal(x, want)


@every_config
def test_no_token_sees_the_future(config: ModelConfig) -> None:
    model, x = build(config, WHOLE).double(), tokens()
    changed = x.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 96
    a, b = model(x), model(changed)
    torch.testing.assert_close(a[:, :10], b[:, :10], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(a[:, 10:], b[:, 10:])


@every_config
def test_regions_compute_with_shards_of_their_weights(config: ModelConfig) -> None:
    """The sum over two ranks of attention and feed-forward on local shards is the whole region's output."""
    whole = build(config, range(1)).double()
    x = torch.randn(2, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    split = {t.name: t.split for t in tensors(config)}
    for region in ("attention", "feed_forward"):
        want = whole.get_submodule(f"layers.0.{region}")(x)
        got = torch.zeros_like(want)
        for rank in range(2):
            local = build(config, range(1)).double()
            local.load_state_dict(whole.state_dict())
            for name, module in local.named_modules():
                for key, p in list(module.named_parameters(recurse=False)):
                    dim = split[f"{name}.{key}"]
                    if dim is not None:
                        setattr(module, key, nn.Parameter(p.detach().chunk(2, dim=dim)[rank].clone()))
                    elif rank == 1 and key == "bias":  # of a row-parallel matrix; it is added once
                        nn.init.zeros_(p)
            got += local.get_submodule(f"layers.0.{region}")(x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_too_long_a_sequence_names_the_knob() -> None:
    model = build(ModelConfig("gpt2", 96, dim=32, num_layers=1, max_seq_len=8), range(-1, 2))
    with pytest.raises(
        ValueError, match=r"sequences of 9 tokens exceed model.max_seq_len=8; raise it or set batch.seq_len=8"
    ):
        model(tokens(1, 9))
