"""What a kind of checkpoint can do: be read box by box (`Source`), be written file by file (`Target`).

A checkpoint of any framework is one more layout of boxes over the same logical tensors, so a conversion is: for every
file of the target, the boxes that it holds, asked of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainsys.config import ModelConfig
from trainsys.interop.fragments import Tables
from trainsys.interop.naming import HF, HF_FUSED, OURS, STORED, Naming, best_naming, differences, refuse
from trainsys.models.geometry import resolve
from trainsys.space.box import Box
from trainsys.space.tensor import SLOTS, LogicalTensor

STAGING = 1 << 22  # elements in flight between source and target
Read = Callable[[str, LogicalTensor, Box], Tensor]  # (slot, tensor, box) -> values


class Source(Protocol):
    """A checkpoint to read.

    Attributes:
        config: its architecture, where it says so itself.
        step: optimizer steps in it, where it says so.
        slots: those of `SLOTS` that it has.
        manifest: what only our own checkpoints say: batch, seed, settings.
    """

    path: Path
    config: ModelConfig | None
    step: int | None
    slots: tuple[str, ...]
    manifest: Mapping[str, Any]

    def check(self, config: ModelConfig) -> None:
        """Whether it holds exactly this architecture; ValueError lists names and shapes that differ."""

    def dtype(self, slot: str, tensor: LogicalTensor) -> torch.dtype:
        """Stored precision."""

    def read(self, slot: str, tensor: LogicalTensor, box: Box) -> Tensor:
        """One box in the stored precision; ValueError, one line, for a damaged or missing file."""


@dataclass(frozen=True)
class Shard:
    """One file of the target. `items` are the target's own; `nbytes` of tensors, for progress."""

    name: str
    nbytes: int
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Written:
    """One finished file; `note` is what the target wants to know of it at the end, in JSON's types."""

    nbytes: int
    crc: int
    sha256: str
    note: Any = None


class Target(Protocol):
    """A checkpoint to write, in files of its choice. `slots`: those that it needs."""

    slots: tuple[str, ...]

    def shards(self) -> Sequence[Shard]:
        """The large files, in the order in which they are written."""

    def write(self, path: Path, shard: Shard, read: Read, advance: Callable[[int], None]) -> Any:
        """Write one of them; returns its note, reports bytes as they come."""

    def finish(self, folder: Path, written: Mapping[str, Written]) -> None:
        """Write the small files that say how the large ones belong together."""


class NamedSource:
    """A source whose tensors are found by name in files."""

    config: ModelConfig | None = None
    step: int | None = None

    def __init__(self, path: Path, tables: Tables, namings: tuple[Naming, ...] = (OURS, HF, HF_FUSED, STORED)) -> None:
        self.path, self.tables = path, tables
        self.slots = tuple(slot for slot in SLOTS if tables.get(slot))
        self.manifest: Mapping[str, Any] = {}
        self._namings = namings
        self._naming, self._checked = namings[0], ModelConfig()
        self._prefix: dict[str, str] = {}

    def check(self, config: ModelConfig) -> None:
        config = resolve(config)
        self._checked = config
        shapes = {slot: {name: at.shape for name, at in self.tables[slot].items()} for slot in self.slots}
        self._naming, _ = best_naming(self._namings, config, shapes["master"])
        for slot, found in shapes.items():
            _, self._prefix[slot] = best_naming((self._naming,), config, found)
            wrong = differences(self._naming, self._prefix[slot], config, found)
            refuse(self.path, wrong if slot == "master" else [f"{slot} of {line}" for line in wrong])

    def dtype(self, slot: str, tensor: LogicalTensor) -> torch.dtype:
        span = self._naming.spans(self._checked, tensor)[0]
        return self.tables[slot][self._prefix[slot] + span.name].dtype

    def read(self, slot: str, tensor: LogicalTensor, box: Box) -> Tensor:
        parts = []
        for span in self._naming.spans(self._checked, tensor):
            if (common := span.box.intersect(box)) is not None:
                name = self._prefix[slot] + span.name
                theirs = self.tables[slot][name].read(name, span.theirs(common))
                values = theirs.view(theirs.shape[len(span.lead) :])
                parts.append((common, values.T if span.transposed else values))
        if len(parts) == 1 and parts[0][0] == box:
            return parts[0][1]
        assert sum(common.numel for common, _ in parts) == box.numel, (tensor.name, box)
        whole = torch.empty(box.shape, dtype=parts[0][1].dtype)
        for common, values in parts:
            whole[common.within(box)] = values
        return whole
