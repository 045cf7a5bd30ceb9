"""A pseudo-random permutation that is evaluated at single points, without a table."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def permute(index: NDArray[np.uint64], n: int, key: str) -> NDArray[np.uint64]:
    """Images of `index` under the permutation of 0 … n-1 that `key` names, in O(1) each and any order.

    A Feistel network permutes the next power of four; an image outside 0 … n-1 is mapped again until it falls inside
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", §4), on average four times at worst.
    """
    assert 0 < n < 1 << 62, n
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    keys = np.frombuffer(blake2b(key.encode(), digest_size=8 * ROUNDS).digest(), dtype="<u8")
    image = _feistel(index.astype(np.uint64), half, keys)
    while (outside := image >= n).any():
        image[outside] = _feistel(image[outside], half, keys)
    return image


def _feistel(x: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of the 2·half-bit integers, whatever `_mix` does (Luby and Rackoff 1988)."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al. 2014, "Fast splittable pseudorandom number generators", fig. 16)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
