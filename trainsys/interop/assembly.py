"""Their tensors put together from ours, slab by slab, in the order in which a file holds them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.interop.formats import STAGING, Read
from trainsys.interop.naming import Naming, Span
from trainsys.models.geometry import tensors
from trainsys.space.box import Box, cut
from trainsys.space.tensor import LogicalTensor


class Assembly:
    """The tensors of one model as `naming` has them. `shapes`: theirs by name, in the order of our forward pass."""

    def __init__(self, naming: Naming, config: ModelConfig) -> None:
        self.shapes = naming.shapes(config)
        self._spans: dict[str, list[tuple[LogicalTensor, Span]]] = {name: [] for name in self.shapes}
        for tensor in tensors(config):
            for span in naming.spans(config, tensor):
                self._spans[span.name].append((tensor, span))

    def slabs(self, slot: str, name: str, read: Read, dtype: torch.dtype, box: Box | None = None) -> Iterator[Tensor]:
        """One of their tensors, or a box of it, row-major, in pieces of at most `STAGING` elements."""
        for slab in cut(box or Box.whole(self.shapes[name]), STAGING):
            yield self._slab(slot, name, read, dtype, slab)

    def _slab(self, slot: str, name: str, read: Read, dtype: torch.dtype, slab: Box) -> Tensor:
        values, filled = torch.empty(slab.shape, dtype=dtype), 0
        for tensor, span in self._spans[name]:
            common = span.theirs(span.box).intersect(slab)
            if common is not None:
                part = read(slot, tensor, span.ours(common))
                part = part.T if span.transposed else part
                values[common.within(slab)] = part.reshape(common.shape)
                filled += common.numel
        assert filled == slab.numel, (name, slab)
        return values
