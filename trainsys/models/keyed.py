"""Random streams named by a key: the same key gives the same numbers on every rank, in any order of asking."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def stream(*key: int | str) -> np.random.Generator:
    """Fresh counter-based generator for `key` (Philox: Salmon et al. 2011, doi:10.1145/2063384.2063405, §4).

    torch's CPU generator keeps 32 bits of its seed, so that among 10^5 keys two would likely share their numbers;
    this one takes 128.
    """
    digest = blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
