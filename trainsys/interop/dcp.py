"""Folders of torch's Distributed Checkpoint (DCP): read box by box, written item by item.

A file ``*.distcp`` is a row of `torch.save` archives, one per box of a tensor; ``.metadata`` says which box lies where.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainsys.interop.deepspeed import agreed_step
from trainsys.interop.formats import NamedSource
from trainsys.interop.fragments import Fragments
from trainsys.interop.sums import Sums
from trainsys.interop.torch_files import Mapped, StoredTensor, load_lazily, unpickle
from trainsys.space.box import Box

METADATA = ".metadata"
_STATE = re.compile(r"(?:.*\.)?state\.(.+)\.(exp_avg|exp_avg_sq|step)")  # of an optimizer's state_dict, by name
_BESIDE = re.compile(
    r"(?:.*\.)?(param_groups\..*|_extra_state(/.*)?|epoch|step|train_state|dataloader.*|lr_scheduler.*)"
)


class Item:
    """One saved box; its archive is opened when it is first read."""

    def __init__(
        self, mapped: Callable[[], Mapped], start: int, length: int, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._mapped, self._start, self._length = mapped, start, length
        self._stored: StoredTensor | None = None

    def read(self, box: Box | None = None) -> Tensor:
        """A copy of one box. Raises ValueError, one line, for a damaged or foreign item."""
        if self._stored is None:
            file = self._mapped()
            stored = load_lazily(file, self._start, self._length)
            if not isinstance(stored, StoredTensor) or (stored.shape, stored.dtype) != (self.shape, self.dtype):
                found = f"{stored.dtype} {list(stored.shape)}" if isinstance(stored, StoredTensor) else "no tensor"
                raise ValueError(f"{file.path}: at byte {self._start} is {found}, not {self.dtype} {list(self.shape)}")
            self._stored = stored
        return self._stored.read(box)


def read_dcp(folder: Path, sums: Sums) -> tuple[dict[str, Fragments], list[str]]:
    """Every tensor of a DCP folder by name, and the names of its other objects.

    Raises:
        ValueError: one line, where the metadata or a file is missing or damaged.
    """
    path = folder / METADATA
    if not path.is_file():
        raise ValueError(f"{folder} is no checkpoint of torch.distributed.checkpoint: {METADATA} is missing")
    sums.verify(path)
    metadata = unpickle(path.read_bytes(), path)
    try:
        stored = {(i.fqn, tuple(i.offset or ())): info for i, info in metadata.storage_data.items()}
        tables: dict[str, Fragments] = {}
        others = []
        for name, about in metadata.state_dict_metadata.items():
            if not hasattr(about, "chunks"):
                others.append(name)
                continue
            at = tables.setdefault(name, Fragments(tuple(about.size)))
            for chunk in about.chunks:
                start, shape = tuple(chunk.offsets), tuple(chunk.sizes)
                info = stored.get((name, start)) or stored[name, ()]
                file = folder / info.relative_path
                if not file.is_file():
                    raise ValueError(f"{file} is missing")
                item = Item(partial(sums.mapped, file), info.offset, info.length, shape, about.properties.dtype)
                at.add(Box(start, tuple(a + n for a, n in zip(start, shape, strict=True))), item)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    return tables, others


def open_foreign_dcp(path: Path) -> NamedSource:
    """A DCP folder of a torch model's ``state_dict``, with its Adam states where they are named by parameter."""
    if not path.is_dir():
        raise ValueError(f"{path} is no folder")
    stored, _ = read_dcp(path, Sums(path))
    tables: dict[str, dict[str, Fragments]] = {"master": {}, "exp_avg": {}, "exp_avg_sq": {}}
    steps = []
    for name, at in stored.items():
        if match := _STATE.fullmatch(name):
            if match[2] == "step":
                steps.append(int(at.read(name, Box.whole(at.shape)).item()))
            else:
                tables[match[2]][match[1]] = at
        elif not _BESIDE.fullmatch(name):
            tables["master"][name] = at
    source = NamedSource(path, tables)
    source.step = agreed_step(path, steps, None)
    return source


# -- write -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Saved:
    """One item of a file: a box of tensor `name`, or without one an object, at bytes [offset, offset + length)."""

    name: str
    file: str
    offset: int
    length: int
    box: Box | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32


def write_metadata(folder: Path, items: Iterable[Saved]) -> None:
    """The ``.metadata`` of a folder whose files hold `items`."""
    from torch.distributed.checkpoint import metadata as meta
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors: dict[str, Any] = {}
    where: dict[Any, Any] = {}
    for item in items:
        place = _StorageInfo(item.file, item.offset, item.length)
        if item.box is None:
            tensors[item.name] = meta.BytesStorageMetadata()
            where[meta.MetadataIndex(item.name)] = place
            continue
        about = tensors.setdefault(
            item.name,
            meta.TensorStorageMetadata(meta.TensorProperties(dtype=item.dtype), torch.Size(item.shape), []),
        )
        offset = torch.Size(item.box.start)
        where[meta.MetadataIndex(item.name, offset, len(about.chunks))] = place
        about.chunks.append(meta.ChunkStorageMetadata(offset, torch.Size(item.box.shape)))
    with (folder / METADATA).open("wb") as stream:
        pickle.dump(meta.Metadata(tensors, None, where, meta.StorageMeta()), stream)
