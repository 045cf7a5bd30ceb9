"""Logical tensors: what is trained, before anybody says where it lives."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

EMBED = -1  # block index of the input embedding; transformer layers are 0 … L-1, the head is L


@dataclass(frozen=True)
class LogicalTensor:
    """One parameter of the whole model, as if every parallel degree were 1.

    Attributes:
        name: fully qualified name in the model's ``state_dict``.
        shape: global shape.
        block: which model block owns it: ``EMBED`` (-1), a layer index, or ``num_layers`` for final norm and head.
        split: dim that tensor parallelism shards (``Shard(split)``), or None (``Replicate()`` over tp).
        uses: blocks that compute with it; more than one for a tied embedding, which is then held by both stages.
    """

    name: str
    shape: tuple[int, ...]
    block: int
    split: int | None = None
    uses: tuple[int, ...] = ()

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.uses or (self.block,)

    @property
    def numel(self) -> int:
        return prod(self.shape)

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """Shape of one of `tp` equal shards."""
        if self.split is None or tp == 1:
            return self.shape
        return tuple(n // tp if d == self.split else n for d, n in enumerate(self.shape))
