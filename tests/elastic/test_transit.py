"""Transitions on gloo ranks: every element right, and no more memory than promised, counted from outside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainsys.comm.communicator import Communicator
from trainsys.config import ModelConfig, ParallelConfig
from trainsys.elastic.staging import Staging
from trainsys.elastic.transit import run_transition
from trainsys.models.geometry import split_layers, tensors
from trainsys.parallel.state import FlatState
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout
from trainsys.space.places import piece_places, storage_places
from trainsys.space.tensor import SLOTS, Space
from trainsys.testing import RankPool

CPU = torch.device("cpu")
MESHES = {  # from, to, lost ranks
    "tp2·dp2 to tp4": ({"tp": 2, "dp": 2}, {"tp": 4}, ()),
    "zero dp4 to dp3": ({"dp": 4, "zero": 1}, {"dp": 3, "zero": 1}, (3,)),
    "pp4 to tp2·pp2": ({"pp": 4}, {"tp": 2, "pp": 2}, ()),
    "bare pp4 to pp2": ({"pp": 4}, {"pp": 2, "dp": 2}, ()),
    "one joins": ({"dp": 3, "zero": 1}, {"pp": 2, "zero": 1, "stage_replicas": (2, 2)}, ()),
}


class Alive(TorchDispatchMode):
    """Bytes of all storages that torch made since, counted at every operation."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._storages = {k: (ref, n) for k, (ref, n) in self._storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(n for _, n in self._storages.values()))
        return result


def layouts(name: str, space_layers: int, chunk: int) -> tuple[Layout, Layout, tuple[int, ...]]:
    src_mesh, dst_mesh, lost = MESHES[name]
    a, b = ParallelConfig(**src_mesh), ParallelConfig(**dst_mesh)
    size = a.dp * a.tp * a.pp
    src = build_layout(a, split_layers(space_layers, a.pp), range(size), chunk, lambda r: 0)
    left = [r for r in range(max(size, 4)) if r not in lost]
    dst = succeed(src, b, split_layers(space_layers, b.pp), left, lambda r: 0)
    if name.startswith("bare"):  # one holder of each element, so that sources do not take turns
        src, dst = replace(src, mirrors=()), replace(dst, mirrors=())
    return src, dst, tuple(r for r in src.ranks if r not in lost)


def filled(space: Space, layout: Layout, rank: int) -> FlatState:
    """Each value tells slot, tensor and coordinate."""
    state = FlatState(layout.storage(space, rank), torch.float32, CPU)
    for piece, offset in storage_places(space, layout, rank):
        tensor = space.tensors[piece.tensor]
        numbers = torch.arange(tensor.numel, dtype=torch.float32).view(tensor.shape)
        for place in piece_places(tensor, layout.tp, piece, offset):
            box = tuple(slice(a, b) for a, b in zip(place.box.start, place.box.stop, strict=True))
            for i, slot in enumerate(SLOTS):
                state.run(slot, place).copy_(numbers[box] * 3 + i + 0.25 * (piece.tensor % 4))
    return state


def reshard(rank: int, world_size: int, store: Any, name: str, dim: int, chunk: int, budget: int) -> dict[str, Any]:
    space = Space(tensors(ModelConfig(vocab_size=64, dim=dim, num_layers=4, num_heads=4, max_seq_len=8)))
    src, dst, alive = layouts(name, 4, chunk)
    members = tuple(sorted({*alive, *dst.ranks}))
    if rank not in members:
        return {}
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    old = filled(space, src, rank) if rank in alive else None
    before = {s: t.clone() for s, t in old.slots.items()} if old is not None else {}
    staging, nodes = Staging(budget), dict.fromkeys(members, 0)
    with Alive() as counted:
        new, received = run_transition(
            space, src, dst, rank, alive, nodes, old, comm.group(members), torch.float32, CPU, staging
        )
    comm.close()
    right = filled(space, dst, rank) if rank in dst.ranks else FlatState((), torch.float32, CPU)
    states = sum(t.nbytes for s in (old, new) if s is not None for t in s.slots.values())
    return {
        "right": all(torch.equal(new.slots[s], right.slots[s]) for s in SLOTS),
        "old whole": all(torch.equal(old.slots[s], t) for s, t in before.items()) if old is not None else True,
        "counted": counted.peak,
        "own count": staging.peak_bytes,
        "states": states,
        "received": received,
        "staged": staging.staged_bytes,
    }


@pytest.mark.parametrize("name", list(MESHES))
@pytest.mark.parametrize(("dim", "chunk", "budget"), [(32, 512, 16 << 20), (32, 500, 6000), (128, 16384, 200_000)])
def test_every_element_within_the_budget(ranks: RankPool, name: str, dim: int, chunk: int, budget: int) -> None:
    rows = [r for r in ranks.run(reshard, 4, name, dim, chunk, budget) if r]
    assert all(r["right"] for r in rows)
    assert all(r["old whole"] for r in rows)
    assert sum(r["received"] for r in rows) > 0
    largest = 2 * len(SLOTS) * 4 * chunk  # a move is at most a chunk, and two buffers are always granted
    for r in rows:
        assert r["states"] <= r["counted"] <= r["states"] + max(budget, largest)
        assert r["counted"] <= r["own count"] <= r["states"] + max(budget, largest)


def test_long_runs_are_not_staged(ranks: RankPool) -> None:
    """Rows of a whole stage go from storage to storage; packing everything would stage each byte twice."""
    rows = ranks.run(reshard, 4, "bare pp4 to pp2", 256, 16384, 16 << 20)
    assert all(r["right"] for r in rows)
    assert sum(r["staged"] for r in rows) < 0.2 * sum(r["received"] for r in rows)
