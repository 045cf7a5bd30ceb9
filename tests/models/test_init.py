"""Initial values: any box equals the slice of the whole."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.config import ModelConfig
from trainsys.models.geometry import tensors
from trainsys.models.init import STD, init_box
from trainsys.space.tensor import LogicalTensor

CONFIG = ModelConfig(vocab_size=300, dim=32, num_layers=2, num_heads=2)
BY_NAME = {t.name: t for t in tensors(CONFIG)}
EMBEDDING = BY_NAME["tok_embeddings.weight"]


def whole(tensor: LogicalTensor, seed: int = 0, config: ModelConfig = CONFIG) -> torch.Tensor:
    return init_box(tensor, (0,) * len(tensor.shape), tensor.shape, seed, config)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_box_equals_the_slice_of_the_whole(data: st.DataObject) -> None:
    tensor = BY_NAME[data.draw(st.sampled_from(sorted(BY_NAME)))]
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in tensor.shape]
    start, stop = tuple(a for a, _ in ends), tuple(b for _, b in ends)
    box = init_box(tensor, start, stop, 7, CONFIG)
    assert box.dtype == torch.float32
    assert torch.equal(box, whole(tensor, 7)[tuple(slice(a, b) for a, b in ends)])


def test_values_are_normal_and_keyed_by_seed_name_and_rows() -> None:
    big = LogicalTensor("layers.0.feed_forward.w1.weight", (4096, 64), 0, 0)
    x = whole(big)
    assert abs(x.std().item() / STD - 1) < 0.01
    assert abs(x.mean().item()) < 3e-4
    assert not torch.equal(x, whole(big, seed=1))
    assert not torch.equal(x, whole(LogicalTensor("layers.1.feed_forward.w1.weight", (4096, 64), 1, 0)))
    assert len(torch.unique(x.view(64, 64 * 64)[:, 0])) == 64  # each block of rows draws its own numbers


def test_norms_biases_and_residual_outputs() -> None:
    gpt2 = ModelConfig("gpt2", 300, dim=256, num_layers=8, num_heads=2)
    named = {t.name: whole(t, config=gpt2) for t in tensors(gpt2)}
    assert (named["layers.3.ln_1.weight"] == 1).all()
    assert (named["layers.3.ln_1.bias"] == 0).all()
    assert (named["layers.3.attention.wo.bias"] == 0).all()
    for name, std in {"attention.wo": STD / 4, "feed_forward.c_proj": STD / 4, "feed_forward.c_fc": STD}.items():
        assert abs(named[f"layers.3.{name}.weight"].std().item() / std - 1) < 0.02


def test_part_of_a_large_tensor_costs_only_its_rows() -> None:
    """Drawing one row of a terabyte-sized tensor must not draw the rest."""
    huge = LogicalTensor("output.weight", (2**34, 16), 2, 0)
    assert init_box(huge, (2**33 + 5, 3), (2**33 + 6, 7), 0, CONFIG).shape == (1, 4)
