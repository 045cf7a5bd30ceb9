"""The peers of `trainsys bench reshard`: DCP through a folder in memory, and DTensor.redistribute."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from benchmarks._reshard_cases import Case, expected
from trainsys.space.layout import Layout
from trainsys.space.stage import Team
from trainsys.space.tensor import SLOTS, Space

Tensors = dict[str, Any]
Meshes = dict[tuple[Team, ...], DeviceMesh]


def run_peers(
    case: Case, space: Space, src: Layout, dst: Layout, rank: int, world_size: int, store: Any, repeat: int
) -> dict[str, Any]:
    """Spans of `dcp` and, where possible, `redistribute` on this rank; `peers_right` is whether both gave the state."""
    prefix = dist.PrefixStore("peers", store)
    dist.init_process_group("gloo", store=prefix, rank=rank, world_size=world_size, timeout=timedelta(seconds=300))
    folder = [""]
    if rank == 0:
        folder = [tempfile.mkdtemp(prefix="trainsys-reshard-", dir="/dev/shm")]
    dist.broadcast_object_list(folder)
    spans: dict[str, list[tuple[float, float]]] = {"dcp": []}
    try:
        meshes = _meshes(src, world_size), _meshes(dst, world_size)
        before = _dtensors(space, src, meshes[0], rank, True)
        right = True
        for i in range(repeat):
            after = _dtensors(space, dst, meshes[1], rank, False)
            path = str(Path(folder[0]) / str(i))
            spans["dcp"].append(_timed(lambda path=path, after=after: _save_and_load(before, after, path)))
            right = right and _is_right(after, space)
            dist.barrier()
            if rank == 0:
                shutil.rmtree(path)
        if not case.redistribute:
            spans["redistribute"], equal = _redistribute(space, src, rank, repeat)
            right = right and equal
    finally:
        dist.barrier()
        if rank == 0:
            shutil.rmtree(folder[0], ignore_errors=True)
        dist.destroy_process_group()
    return {"peer_spans": spans, "peers_right": right}


def _save_and_load(before: Tensors, after: Tensors, path: str) -> None:
    dcp.save(before, checkpoint_id=path)
    dcp.load(after, checkpoint_id=path)


def _meshes(layout: Layout, world_size: int) -> Meshes:
    """One mesh per stage and class of experts, axes dp and tp; made by all ranks, as c10d wants it."""
    classes = [None, *range(layout.ep)] if layout.ep > 1 else [None]
    every = [tuple(stage.teams[i] for i in stage.members(e)) for stage in layout.stages for e in classes]
    return {teams: DeviceMesh("cpu", [list(t) for t in teams], mesh_dim_names=("dp", "tp")) for teams in every}


def _placements(layout: Layout, tensor: Any) -> list[Placement]:
    """ZeRO-1 shards over dp as FSDP does: dim 0."""
    tp: Placement = Replicate() if tensor.split is None else Shard(tensor.split)
    return [Shard(0) if layout.zero else Replicate(), tp]


def _dtensors(space: Space, layout: Layout, meshes: Meshes, rank: int, fill: bool) -> Tensors:
    if rank not in layout.ranks:
        return {}
    made = {}
    for ordinal, tensor in enumerate(space.tensors):
        if layout.holds(tensor, rank):
            for slot in SLOTS:
                mesh = meshes[layout.teams_of(tensor)]
                made[f"{slot}.{tensor.name}"] = _local(space, ordinal, slot, mesh, _placements(layout, tensor), fill)
    return made


def _local(space: Space, ordinal: int, slot: str, mesh: DeviceMesh, placements: list[Placement], fill: bool) -> Any:
    tensor = space.tensors[ordinal]
    shape, offset = _extent(tensor.shape, mesh, placements)
    values = torch.zeros(shape)
    if fill:
        stop = tuple(o + n for o, n in zip(offset, shape, strict=True))
        values.copy_(expected(space, ordinal, slot, tuple(offset), stop))
    stride = torch.empty(tensor.shape, device="meta").stride()
    return DTensor.from_local(values, mesh, placements, run_check=False, shape=torch.Size(tensor.shape), stride=stride)


def _extent(shape: tuple[int, ...], mesh: DeviceMesh, placements: list[Placement]) -> tuple[list[int], list[int]]:
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    local, offset = compute_local_shape_and_global_offset(torch.Size(shape), mesh, placements)
    return list(local), list(offset)


def _is_right(tensors: Tensors, space: Space) -> bool:
    for name, value in tensors.items():
        slot, _, rest = name.partition(".")
        ordinal = space.ordinal[rest]
        shape, offset = _extent(space.tensors[ordinal].shape, value.device_mesh, list(value.placements))
        stop = tuple(o + n for o, n in zip(offset, shape, strict=True))
        if not torch.equal(value.to_local(), expected(space, ordinal, slot, tuple(offset), stop)):
            return False
    return True


def _redistribute(space: Space, src: Layout, rank: int, repeat: int) -> tuple[list[tuple[float, float]], bool]:
    """tp over both mesh axes: the same shard on the same rank as the destination's."""
    before = _dtensors(space, src, _meshes(src, len(src.ranks)), rank, True)
    spans, after = [], {}

    def act() -> None:
        for name, value in before.items():
            tp = value.placements[1]
            after[name] = value.redistribute(placements=[tp, tp])

    for _ in range(repeat):
        after.clear()
        spans.append(_timed(act))
    return spans, _is_right(after, space)


def _timed(action: Callable[[], None]) -> tuple[float, float]:
    dist.barrier()
    start = time.perf_counter()
    action()
    return start, time.perf_counter()
