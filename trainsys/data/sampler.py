"""An endless stream of training sequences in which the position is one integer."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainsys.data.permutation import permute
from trainsys.data.source import TokenSource

_BLOCK = 1024  # images worked out at once: a few cost hardly less than that


@lru_cache(maxsize=8)
def _images(n: int, key: str, block: int) -> NDArray[np.uint64]:
    """Those of one block's numbers under the permutation of 0 … n-1 that `key` names."""
    return permute(np.arange(block * _BLOCK, min((block + 1) * _BLOCK, n), dtype=np.uint64), n, key)


class Sampler:
    """Sequence number `position` of epoch after epoch, each a fresh permutation keyed by (seed, epoch).

    Nothing that counts is remembered between calls: any rank reads any part of any batch, and resuming needs the
    position alone.
    """

    def __init__(self, source: TokenSource, seq_len: int, seed: int) -> None:
        """Cut `source` into sequences of `seq_len` inputs.

        Raises:
            ValueError: when it has too few tokens for one sequence and its targets.
        """
        if seq_len < 1:
            raise ValueError(f"batch.seq_len={seq_len} must be at least 1")
        self.num_sequences = (source.num_tokens - 1) // seq_len
        if self.num_sequences < 1:
            raise ValueError(
                f"the data has {source.num_tokens} tokens, one sequence needs {seq_len + 1}; "
                "give more text (data.path, data.max_bytes) or lower batch.seq_len"
            )
        self.source, self.seq_len, self.seed = source, seq_len, seed

    def indices(self, position: int, count: int) -> NDArray[np.int64]:
        """Which sequences of the source stand at `position` … ``position + count - 1``; int64 [count]."""
        assert position >= 0, position
        assert count >= 0, count
        found = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:  # once per epoch and block touched
            epoch, at = divmod(position + done, self.num_sequences)
            block, first = divmod(at, _BLOCK)
            part = _images(self.num_sequences, f"{self.seed}/{epoch}", block)[first : first + count - done]
            found[done : done + len(part)] = part
            done += len(part)
        return found

    def batch(self, position: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets, int64 [count, seq_len] each, of the sequences from `position` on."""
        rows = [self.source.sequence(int(i), self.seq_len) for i in self.indices(position, count)]
        tokens = np.stack(rows) if rows else np.empty((0, self.seq_len + 1), dtype=np.int64)
        return tokens[:, :-1], tokens[:, 1:]
