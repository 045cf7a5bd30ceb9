"""Tensors that lie in several files, each file holding some boxes of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from trainsys.interop.torch_files import StoredTensor
from trainsys.space.box import Box, flat_boxes


class Stored(Protocol):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, box: Box) -> Tensor:
        """A copy of one box."""


@dataclass
class Fragments:
    """One tensor of a checkpoint: boxes of it and where each lies."""

    shape: tuple[int, ...]
    parts: list[tuple[Box, Stored]] = field(default_factory=list)
    _order: tuple[list[int], int] | None = None  # first rows of the sorted parts, and the most rows that one has

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0][1].dtype

    def add(self, box: Box, values: Stored) -> None:
        self.parts.append((box, values))
        self._order = None

    def add_run(self, start: int, flat: StoredTensor, at: int, numel: int) -> None:
        """Elements [start, start + numel) of the row-major tensor are elements [at, at + numel) of `flat`."""
        for box in flat_boxes(self.shape, start, start + numel):
            self.add(box, flat.run(at, box))
            at += box.numel

    def read(self, name: str, box: Box) -> Tensor:
        """One box, each element from the one fragment that holds it.

        Raises:
            ValueError: some element is in no fragment, or in two.
        """
        found = [(common, at, part) for at, part in self._near(box) if (common := at.intersect(box))]
        held = sum(common.numel for common, _, _ in found)
        if held != box.numel:
            raise ValueError(f"{name}{box}: its files hold {held} of {box.numel} elements")
        if len(found) == 1:
            (common, at, part) = found[0]
            return part.read(Box.whole(part.shape) if common == at else _inside(common, at))
        values = torch.empty(box.shape, dtype=self.dtype)
        for common, at, part in found:
            values[common.within(box)] = part.read(_inside(common, at))
        return values

    def _near(self, box: Box) -> list[tuple[Box, Stored]]:
        """The parts that can have rows in common with `box`: a tensor may be cut into very many."""
        if not self.shape:
            return self.parts
        if self._order is None:
            self.parts.sort(key=lambda part: part[0].start)
            self._order = [at.start[0] for at, _ in self.parts], max(at.shape[0] for at, _ in self.parts)
        starts, height = self._order
        return self.parts[bisect_right(starts, box.start[0] - height) : bisect_left(starts, box.stop[0])]


def _inside(box: Box, outer: Box) -> Box:
    return box.shift([-n for n in outer.start])


Tables = Mapping[str, Mapping[str, Fragments]]  # slot -> name in that checkpoint -> where it lies
