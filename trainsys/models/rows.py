"""Which rows of a sequence are here, where a runtime cuts sequences: everything positional counts by it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The local part of every sequence.

    Attributes:
        of: positions of the whole sequence.
        which: int64 [S], the position of each local row.
    """

    of: int
    which: Tensor

    def take(self, whole: Tensor, dim: int) -> Tensor:
        """Of a tensor that has all positions along `dim`, the local ones."""
        return whole.index_select(dim, self.which)
