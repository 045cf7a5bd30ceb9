"""What the sampler needs from a data set."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenSource(Protocol):
    """A fixed row of token ids, cut into sequences. Reading is random access and does not change any state."""

    @property
    def vocab_size(self) -> int:
        """Every id is below this."""
        ...

    @property
    def num_tokens(self) -> int: ...

    def sequence(self, index: int, seq_len: int) -> NDArray[np.int64]:
        """Tokens ``index·seq_len`` … ``(index + 1)·seq_len``, both included: `seq_len` inputs and their targets."""
        ...
