"""The hash of training state: independent of the cut, and changed by whatever can go wrong."""

from __future__ import annotations

from itertools import pairwise, product
from math import prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.elastic import hashing
from trainsys.elastic.hashing import MASK, hash_block, hash_run, weights_of
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Piece
from trainsys.space.tensor import SLOTS, LogicalTensor

CPU = torch.device("cpu")
DTYPES = st.sampled_from([torch.float32, torch.float64])


def by_definition(whole: torch.Tensor) -> int:
    """The sum over all elements, in Python's integers."""
    total = 0
    for number, at in enumerate(product(*map(range, whole.shape))):
        value = whole[at].reshape(1)
        bits = int(value.view(torch.int32 if value.dtype == torch.float32 else torch.int64))
        bits ^= bits >> 32 if value.dtype == torch.float64 else 0
        total += bits * (2 * number + 1) * 0x9E3779B97F4A7C15
    return total & MASK


@settings(max_examples=150, deadline=None)
@given(st.data(), DTYPES, st.integers(0, 2**31))
def test_any_cut_adds_up_to_the_definition(data: st.DataObject, dtype: torch.dtype, seed: int) -> None:
    """Over any tp, any split dim and any runs of the shards, block borders included."""
    tp = data.draw(st.sampled_from([1, 2, 4]))
    shape = tuple(tp * n for n in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    tensor = LogicalTensor("x", shape, 0, data.draw(st.sampled_from([None, *range(len(shape))])))
    generator = torch.Generator().manual_seed(seed)
    wholes = [torch.randn(shape, generator=generator, dtype=dtype) for _ in SLOTS]
    totals = [0] * len(SLOTS)
    for shard in range(tp if tensor.split is not None else 1):
        box = tensor.local_box(tp, shard)
        local = [w[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))].reshape(-1) for w in wholes]
        numel = prod(tensor.local_shape(tp))
        borders = sorted({0, numel, *data.draw(st.lists(st.integers(0, numel), max_size=4))})
        state = FlatState([Piece(0, shard, 0, numel)], dtype, CPU)
        for slot, values in zip(SLOTS, local, strict=True):
            state.slots[slot].copy_(values)
        for start, stop in pairwise(borders):
            for i, value in enumerate(hash_run(state, start, tensor, tp, shard, start, stop)):
                totals[i] = (totals[i] + value) & MASK
    assert totals == [by_definition(w) for w in wholes]


def test_a_run_longer_than_a_block() -> None:
    numel = 2 * hashing._BLOCK + 5
    tensor, state = LogicalTensor("x", (numel,), 0), FlatState([Piece(0, 0, 0, numel)], torch.float32, CPU)
    state.slots["master"].normal_()
    whole = hash_run(state, 0, tensor, 1, 0, 0, numel)
    parts = [hash_run(state, a, tensor, 1, 0, a, b) for a, b in ((0, 77), (77, numel - 1), (numel - 1, numel))]
    assert whole == tuple(sum(values) & MASK for values in zip(*parts, strict=True))
    assert whole[0] != 0


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 20), st.integers(1, 1 << 20), *[st.floats(width=32, allow_nan=False)] * 2, DTYPES)
def test_any_swap_is_noticed(at: int, gap: int, a: float, b: float, dtype: torch.dtype) -> None:
    """Of two different values, at any two places: also of x and -x, which differ in one bit."""
    tensor = LogicalTensor("x", (at + gap + 1,), 0)
    here, there = (weights_of(tensor, 1, 0, place, place + 1, CPU) for place in (at, at + gap))
    for x, y in ((a, b), (a, -a)):
        if str(x) == str(y):
            continue
        left, right = torch.tensor([x], dtype=dtype), torch.tensor([y], dtype=dtype)
        straight = hash_block([left], here)[0] + hash_block([right], there)[0]
        crossed = hash_block([right], here)[0] + hash_block([left], there)[0]
        assert (straight - crossed) % 2**64


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 63), st.integers(0, 11), st.integers(0, 2**31))
def test_any_flipped_bit_is_noticed(bit: int, at: int, seed: int) -> None:
    weights = weights_of(LogicalTensor("x", (12,), 0), 1, 0, 0, 12, CPU)
    for dtype, integers, width in ((torch.float32, torch.int32, 32), (torch.float64, torch.int64, 64)):
        whole = torch.randn(12, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        damaged = whole.clone()
        number = 1 << bit % width
        damaged.view(integers)[at] ^= number - (1 << width if number >> (width - 1) else 0)
        assert hash_block([damaged], weights) != hash_block([whole], weights)
