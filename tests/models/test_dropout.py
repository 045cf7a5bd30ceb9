"""Keyed dropout: one mask per (seed, step, sample, site), however the batch and the activation are cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.config import ModelConfig
from trainsys.models.dropout import KeyedDropout, SampleKeys, Shard
from trainsys.models.registry import build

S, DIM = 12, 8


def dropout(samples: list[int], p: float = 0.4, step: int = 3, site: str = "layers.0.attention") -> KeyedDropout:
    keys = SampleKeys()
    keys.begin(17, step, samples)
    return KeyedDropout(p, site, keys)


def full(samples: list[int], **kwargs: object) -> torch.Tensor:
    return dropout(samples, **kwargs)(torch.ones(len(samples), S, DIM))  # type: ignore[arg-type, no-any-return]


@pytest.mark.parametrize(("dim", "count"), [(0, 2), (0, 4), (1, 2), (1, 8)])
def test_shards_are_slices_of_the_full_mask(dim: int, count: int) -> None:
    whole = full([5, 9])
    parts = whole.chunk(count, dim=1 + dim)
    for index, part in enumerate(parts):
        module = dropout([5, 9])
        module.shard = Shard(dim, index, count)
        assert torch.equal(module(torch.ones_like(part)), part)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_order_and_grouping_of_samples_do_not_matter(order: list[int], size: int) -> None:
    whole = full(list(range(6)))
    for begin in range(0, 6, size):
        group = list(order[begin : begin + size])
        assert torch.equal(full(group), whole[group])


def test_every_part_of_the_key_counts() -> None:
    base = full([5])
    assert torch.equal(base, full([5]))
    assert not torch.equal(base, full([6]))
    assert not torch.equal(base, full([5], step=4))
    assert not torch.equal(base, full([5], site="layers.1.attention"))


def test_rate_and_scale() -> None:
    x = torch.ones(1, 256, 256, dtype=torch.float64)
    y = dropout([0], p=0.25)(x)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.75}
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert y.dtype == x.dtype


def test_off_when_p_is_zero_or_evaluating() -> None:
    x = torch.ones(3, S, DIM)
    assert dropout([], p=0.0)(x) is x
    assert dropout([]).eval()(x) is x


def test_forgotten_keys_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"keys of 1 samples for a batch of 2; call model.keys.begin"):
        dropout([0])(torch.ones(2, S, DIM))


def test_model_replays_under_recompute_and_across_slices() -> None:
    config = ModelConfig("gpt2", 64, dim=16, num_layers=2, num_heads=2, max_seq_len=8, dropout=0.3)
    tokens = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(0))
    whole = build(config, range(-1, 3))
    whole.keys.begin(1, 2, [10, 11])
    want = whole(tokens)
    assert torch.equal(whole(tokens), want)
    x = tokens
    for blocks in (range(-1, 1), range(1, 3)):
        part = build(config, blocks)
        part.load_state_dict({k: v for k, v in whole.state_dict().items() if k in part.state_dict()})
        part.keys.begin(1, 2, [10, 11])
        x = part(x)
    assert torch.equal(x, want)
    whole.keys.begin(1, 2, [11, 10])
    assert not torch.equal(whole(tokens), want)
