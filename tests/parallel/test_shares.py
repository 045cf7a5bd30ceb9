"""Replicas with shares of their own: whoever computes a microbatch, the sums have the same bits."""

from __future__ import annotations

import pytest

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.testing import RankPool


@pytest.mark.parametrize("zero", [1, 3])
def test_unequal_shares_change_no_bit(ranks: RankPool, zero: int) -> None:
    even = run_config(dp=2, pp=2, zero=zero)
    expected = expectation(ranks, 4, even)
    uneven = [run_config(dp=2, pp=2, zero=zero, replica_shares=s) for s in ((5, 3, 2, 6), (1, 7, 4, 4))]
    for got in run_all(ranks, 4, uneven):
        assert_same_bits(got, expected)
