"""Token ids in a flat binary file, read through a memory map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

SCANNED = 1 << 24  # ids checked on opening; the rest are checked as they are read


def id_dtype(vocab_size: int) -> DTypeLike:
    """Narrowest of uint16 and uint32 that holds every id below `vocab_size`."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


class TokenFile:
    """A `TokenSource` over little-endian uint16 or uint32 ids.

    A name ending in ``.uint16.bin`` or ``.uint32.bin`` says which; otherwise it follows from the vocabulary, as for
    the files that other trainers write.
    """

    def __init__(self, path: Path, vocab_size: int) -> None:
        """Open `path`.

        Raises:
            ValueError: missing or empty file, not a whole number of ids, or an id that the model has no row for.
        """
        self.path, self._vocab_size = path, vocab_size
        named = {".uint16": np.uint16, ".uint32": np.uint32}.get(path.with_suffix("").suffix)
        dtype = np.dtype(named or id_dtype(vocab_size)).newbyteorder("<")
        if not path.is_file():
            raise ValueError(f"data file {path} does not exist")
        size = path.stat().st_size
        if size == 0:
            raise ValueError(f"data file {path} is empty")
        if size % dtype.itemsize:
            raise ValueError(
                f"data file {path} has {size} bytes, not a multiple of {dtype.itemsize} ({dtype.name} ids); "
                "name it *.uint16.bin or *.uint32.bin to choose the width"
            )
        self._ids: NDArray[np.unsignedinteger] = np.memmap(path, dtype=dtype, mode="r")
        self._check(self._ids[:SCANNED], 0)

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        """int64 [seq_len + 1]; see `TokenSource`."""
        first = index * seq_len
        assert 0 <= first <= first + seq_len < self.num_tokens, (index, seq_len, self.num_tokens)
        ids = self._ids[first : first + seq_len + 1]
        self._check(ids, first)
        return ids.astype(np.int64)

    def _check(self, ids: NDArray[np.unsignedinteger], first: int) -> None:
        if int(ids.max()) >= self._vocab_size:
            at = int(np.argmax(ids >= self._vocab_size))
            raise ValueError(
                f"data file {self.path} holds token id {int(ids[at])} at position {first + at}, but "
                f"model.vocab_size={self._vocab_size}; set model.vocab_size above the largest id"
            )
