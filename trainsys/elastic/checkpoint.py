"""Checkpoints: torch DCP, one folder per step, complete or absent.

Every logical tensor is saved as ``<slot>.<name>`` with its global shape, in whatever boxes the layout stored it, so any
layout (and any DCP reader) can load it. `trainsys.elastic.manifest` says where, and what makes a folder whole.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from trainsys.comm.group import Group
from trainsys.comm.objects import broadcast_object, gather_objects
from trainsys.config import RunConfig
from trainsys.elastic.manifest import complete, folder_of, partial_of, remove_partial
from trainsys.interop.disk import FULL
from trainsys.parallel.state import FlatState
from trainsys.space.box import Box
from trainsys.space.layout import Layout
from trainsys.space.places import Place, piece_places, storage_places
from trainsys.space.tensor import SLOTS, Space


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; nothing half-written is left."""


# -- save ------------------------------------------------------------------------------------------------------------


def save_state(
    config: RunConfig, space: Space, layout: Layout, rank: int, step: int, state: FlatState, group: Group | None
) -> Path:
    """Write the whole training state together; every rank of the layout must call.

    Returns:
        The finished folder.

    Raises:
        CheckpointError: on every rank, when any of them could not write.
        CommError: a peer died; the temporary folder is removed by the next save.
    """
    final = folder_of(config, step)
    temporary = partial_of(final)
    lead = rank == layout.ranks[0]
    if lead:
        remove_partial(config)
    planner = _SavePlanner(space, state, saved_places(space, layout, rank))
    writer = FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True)
    planner.set_up_planner({}, None, lead)
    writer.set_up_storage_writer(lead)
    error, plans, results = "", None, []
    gathered = gather_objects(group, planner.create_local_plan())
    if lead:
        assert gathered is not None
        plans, metadata = planner.create_global_plan(gathered)
        error = _attempt(lambda: temporary.mkdir(parents=True), temporary)
        plans = writer.prepare_global_plan(plans)
    plans, error = broadcast_object(group, (plans, error))
    if not error:
        plan = planner.finish_plan(plans[layout.ranks.index(rank)])
        error = _attempt(lambda: results.extend(writer.write_data(plan, planner).wait()), temporary)
    outcomes = gather_objects(group, (error, results))
    if lead:
        assert outcomes is not None
        error = next((e for e, _ in outcomes if e), "")
        error = error or _attempt(lambda: writer.finish(metadata, [r for _, r in outcomes]), temporary)
        error = error or _attempt(lambda: complete(config, step), temporary)
        if error:
            remove_partial(config)
    error = broadcast_object(group, error)
    if error:
        raise CheckpointError(f"checkpoint of step {step} not saved: {error}")
    return final


def saved_places(space: Space, layout: Layout, rank: int) -> list[tuple[int, Place]]:
    """(tensor, where) of the boxes that a rank writes: each element of the space is written by one rank."""
    shard = layout.where(rank)[2]
    writes, offsets = [], dict(storage_places(space, layout, rank))
    if layout.zero == 0:  # whole shards, spread over the replicas
        for ordinal, tensor in enumerate(space.tensors):
            if not layout.holds(tensor, rank) or tensor.first_copy(layout.tp, shard) != shard:
                continue
            teams = layout.teams_of(tensor)
            if rank in teams[ordinal % len(teams)]:
                first = next(p for p, _ in layout.pieces(tensor, ordinal, shard))
                writes.append((ordinal, Place(offsets[first], tensor.local_box(layout.tp, shard))))
        return writes
    for piece in layout.owned(space, rank):
        tensor = space.tensors[piece.tensor]
        if tensor.first_copy(layout.tp, shard) == shard:
            writes += [(piece.tensor, p) for p in piece_places(tensor, layout.tp, piece, offsets[piece])]
    return writes


class _SavePlanner(DefaultSavePlanner):
    """DCP asks which boxes there are and for their contents; both come from the flat state."""

    def __init__(self, space: Space, state: FlatState, writes: list[tuple[int, Place]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items: list[WriteItem] = []
        self._values: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        for ordinal, place in writes:
            tensor = space.tensors[ordinal]
            for slot in SLOTS:
                name, value = f"{slot}.{tensor.name}", state.run(slot, place)
                offset = torch.Size(place.box.start)
                self._values[name, tuple(offset)] = value
                data = TensorWriteData(
                    chunk=ChunkStorageMetadata(offset, torch.Size(place.box.shape)),
                    properties=TensorProperties.create_from_tensor(value),
                    size=torch.Size(tensor.shape),
                )
                self._items.append(WriteItem(MetadataIndex(name, offset), WriteItemType.SHARD, tensor_data=data))

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        assert index.offset is not None
        return self._values[index.fqn, tuple(index.offset)]


def _attempt(action: Any, folder: Path) -> str:
    """Run a disk action; the error as one line, or an empty string."""
    try:
        action()
    except Exception as error:  # torch wraps OSErrors of its writer threads in its own types
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.EFBIG:
            return f"a file grew over this process's limit in {folder.parent}; raise ulimit -f or set checkpoint.dir=…"
        if number in FULL or "No space left" in str(error):
            text = FULL[number if number in FULL else errno.ENOSPC]
            return f"{text} of {folder.parent}; free some or set checkpoint.dir=…"
        return " ".join(str(cause or error).split())[:300]
    return ""


# -- load ------------------------------------------------------------------------------------------------------------


def load_state(
    path: Path, space: Space, layout: Layout, rank: int, dtype: torch.dtype, device: torch.device
) -> FlatState:
    """Read this rank's storage under `layout` from a checkpoint of any layout."""
    state = FlatState(layout.storage(space, rank), dtype, device)
    wanted = []
    for piece, offset in storage_places(space, layout, rank):
        tensor = space.tensors[piece.tensor]
        for place in piece_places(tensor, layout.tp, piece, offset):
            wanted += [(f"{slot}.{tensor.name}", place.box, state.run(slot, place)) for slot in SLOTS]
    SavedTensors(path).read(wanted)
    return state


class SavedTensors:
    """A finished checkpoint folder, read box by box."""

    def __init__(self, path: Path) -> None:
        self._reader = FileSystemReader(path)
        self._metadata = self._reader.read_metadata()

    def dtype(self, name: str) -> torch.dtype:
        """Stored precision of ``<slot>.<name>``."""
        dtype: torch.dtype = self._metadata.state_dict_metadata[name].properties.dtype  # type: ignore[union-attr]
        return dtype

    def read(self, wanted: Sequence[tuple[str, Box, Tensor]]) -> None:
        """Fill each tensor with one box of the ``<slot>.<name>`` beside it."""
        planner = _LoadPlanner(wanted)
        planner.set_up_planner({}, self._metadata, False)
        self._reader.set_up_storage_reader(self._metadata, False)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        self._reader.read_data(planner.finish_plan(plan), planner).wait()


class _LoadPlanner(DefaultLoadPlanner):
    """Asks DCP for boxes and offers the tensors they go to."""

    def __init__(self, wanted: Sequence[tuple[str, Box, Tensor]]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunks: dict[str, list[ChunkStorageMetadata]] = {}
        self._targets: dict[tuple[str, int], Tensor] = {}
        for name, box, target in wanted:
            chunks = self._chunks.setdefault(name, [])
            self._targets[name, len(chunks)] = target
            chunks.append(ChunkStorageMetadata(torch.Size(box.start), torch.Size(box.shape)))

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        items = []
        for name, chunks in self._chunks.items():
            items += create_read_items_for_chunk_list(name, stored[name], chunks)  # type: ignore[arg-type]
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.index is not None
        return self._targets[index.fqn, index.index]
