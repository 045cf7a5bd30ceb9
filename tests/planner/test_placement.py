"""Teams on measured links: never worse than the plain order, and the best there is where all orders can be tried."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.planner.placement import Traffic, place, seconds_of


def links(slots: int, seed: int) -> np.ndarray:
    return 20 * np.exp(np.random.default_rng(seed).normal(0, 0.5, (slots, slots)))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 99))
def test_never_worse_than_the_plain_order(pp: int, dp: int, spare: int, seed: int) -> None:
    traffic = Traffic(pp, dp, 1e6, 8, 1e7)
    found = place(traffic, links(pp * dp + spare, seed), seconds=0.02, seed=seed)
    assert found.step_s <= found.plain_s
    used = [slot for row in found.slots for slot in row]
    assert len(set(used)) == pp * dp
    assert all(sorted(ring) == list(range(dp)) for ring in found.rings)


@pytest.mark.parametrize(("pp", "dp"), [(6, 1), (2, 3), (3, 2), (1, 6)])
def test_finds_the_best_of_all_orders(pp: int, dp: int) -> None:
    traffic, gbps = Traffic(pp, dp, 1e6, 4, 1e7), links(6, pp)
    inverse = np.where(np.eye(6, dtype=bool), 0.0, 1e-9 / gbps)
    orders = np.array(list(itertools.permutations(range(6)))).reshape(-1, pp, dp)
    assert place(traffic, gbps, seconds=0.3).step_s == pytest.approx(seconds_of(traffic, inverse, orders).min())


def test_seconds_of_a_hand_made_case() -> None:
    """Two stages of two replicas: the slower pipeline's messages both ways, and the slower ring edge."""
    gbps = np.full((4, 4), 10.0)
    gbps[1, 3] = 5.0  # stage 0, replica 1 -> stage 1, replica 1
    gbps[2, 3] = 2.0  # within stage 1
    traffic = Traffic(2, 2, 1e9, 3, 4e9)
    found = place(traffic, gbps, seconds=0.0001)
    assert found.plain_s == pytest.approx(3 * (1 / 5 + 1 / 10) + 2 * (1 / 2) * 4 / 2)


def test_a_pipeline_avoids_the_slow_node() -> None:
    gbps = np.full((5, 5), 20.0)
    gbps[2], gbps[:, 2] = 1.0, 1.0
    found = place(Traffic(4, 1, 1e9, 8, 0.0), gbps, seconds=0.1)
    assert (2,) not in found.slots


def test_bad_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pp·dp=2·4 teams but the matrix has 6 slots; set parallel\.dp lower"):
        place(Traffic(2, 4, 1, 1, 1), links(6, 0))
    broken = links(4, 0)
    broken[1, 3] = 0
    with pytest.raises(ValueError, match="the link from 1 to 3 has 0 GB/s; it must be positive"):
        place(Traffic(2, 2, 1, 1, 1), broken)
    with pytest.raises(ValueError, match="the matrix of links is 4 x 3; it must be square"):
        place(Traffic(2, 1, 1, 1, 1), np.ones((4, 3)))
