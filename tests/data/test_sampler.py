"""The endless stream: every epoch a permutation, every position reachable on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainsys.data.permutation import permute
from trainsys.data.sampler import Sampler


class Counting:
    """Token i is the number i."""

    def __init__(self, num_tokens: int) -> None:
        self.vocab_size = self.num_tokens = num_tokens

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        assert (index + 1) * seq_len < self.num_tokens
        return np.arange(index * seq_len, (index + 1) * seq_len + 1, dtype=np.int64)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_visits_each_sequence_once(n: int, seed: int, epoch: int) -> None:
    sampler = Sampler(Counting(4 * n + 1), 4, seed)
    assert sampler.num_sequences == n
    assert np.array_equal(np.sort(sampler.indices(epoch * n, n)), np.arange(n))


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(0, 200), st.lists(st.integers(0, 40), max_size=6))
def test_a_batch_depends_on_positions_alone(n: int, position: int, counts: list[int]) -> None:
    sampler = Sampler(Counting(4 * n + 3), 4, seed=1)
    inputs, targets = sampler.batch(position, sum(counts))
    assert inputs.shape == targets.shape == (sum(counts), 4)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(inputs + 1, targets)
    at = 0
    for count in counts:
        part, _ = Sampler(Counting(4 * n + 3), 4, seed=1).batch(position + at, count)
        assert np.array_equal(part, inputs[at : at + count])
        at += count


def test_seeds_and_epochs_shuffle_differently() -> None:
    n = 1000
    sampler = Sampler(Counting(n + 1), 1, seed=0)
    orders = [sampler.indices(epoch * n, n) for epoch in range(4)]
    orders += [Sampler(Counting(n + 1), 1, seed).indices(0, n) for seed in (1, 2)]
    for i, a in enumerate(orders):
        assert (a == np.arange(n)).sum() < 10  # about one fixed point is expected
        assert abs(np.corrcoef(a, np.arange(n))[0, 1]) < 0.15
        assert all((a == b).sum() < 10 for b in orders[:i])


@pytest.mark.parametrize("n", [3, 16, 100])
def test_every_image_is_equally_likely(n: int) -> None:
    """Where index 0 goes over 4000 keys, against the uniform distribution: chi-square within 5 standard deviations."""
    zero = np.zeros(1, dtype=np.uint64)
    hits = np.bincount([int(permute(zero, n, f"k{k}")[0]) for k in range(4000)], minlength=n)
    chi2 = ((hits - 4000 / n) ** 2 / (4000 / n)).sum()
    assert chi2 < n - 1 + 5 * np.sqrt(2 * (n - 1))


def test_huge_data_sets_need_no_table() -> None:
    n = 10**15
    images = permute(np.arange(1000, dtype=np.uint64), n, "key")
    assert len(np.unique(images)) == 1000
    assert images.max() < n


def test_too_few_tokens_names_the_numbers() -> None:
    assert Sampler(Counting(129), 128, 0).num_sequences == 1
    with pytest.raises(ValueError, match="the data has 128 tokens, one sequence needs 129; give more text"):
        Sampler(Counting(128), 128, 0)
    with pytest.raises(ValueError, match=r"batch.seq_len=0 must be at least 1"):
        Sampler(Counting(128), 0, 0)
