"""Evidence before a transition commits: every element owned once, its bits and its replicas unchanged.

The hash of a set of elements is the sum modulo 2⁶⁴ of bits(x) · (2·coordinate + 1) · K: it does not depend on how the
set is cut into boxes, and notices swapped, shifted, stale and missing elements. Each rank hashes what it has; the
manager only adds up and compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainsys.elastic.messages import Census
from trainsys.parallel.state import FlatState
from trainsys.space.box import Box
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import piece_places
from trainsys.space.tensor import SLOTS, LogicalTensor, Space

_K = 0x9E3779B97F4A7C15 - (1 << 64)  # 2⁶⁴ / golden ratio, as a signed 64-bit integer
_MASK = (1 << 64) - 1


def hash_box(values: Tensor, tensor: LogicalTensor, box: Box) -> int:
    """Hash of the elements of one box.

    Args:
        values: contiguous, in the box's shape, fp32 or fp64.
    """
    bits = values.contiguous().view(torch.int32 if values.dtype == torch.float32 else torch.int64).to(torch.int64)
    if values.dtype == torch.float64:
        bits = bits ^ (bits >> 32)  # else a swap of values that differ in their topmost bits alone would sum to 0
    coordinate = torch.zeros((), dtype=torch.int64, device=values.device)
    for d, size in enumerate(tensor.shape):
        axis = torch.arange(box.start[d], box.stop[d], device=values.device).view([-1] + [1] * (values.dim() - d - 1))
        coordinate = coordinate * size + axis
    weights = (2 * coordinate + 1) * _K
    return int((bits * weights).sum().item()) & _MASK


def hash_piece(state: FlatState, slot: str, piece: Piece, space: Space, tp: int) -> int:
    tensor = space.tensors[piece.tensor]
    places = piece_places(tensor, tp, piece, state.offsets[piece])
    return sum(hash_box(state.run(slot, place), tensor, place.box) for place in places) & _MASK


def take_census(
    space: Space,
    rank: int,
    src: Layout | None,
    alive: Iterable[int],
    old: FlatState | None,
    dst: Layout,
    new: FlatState,
    step: int,
) -> Census:
    """One rank's evidence for a transition from `src` (None: there is none to compare with) to `dst`.

    Args:
        step: optimizer steps that `old` has seen.
    """
    before: dict[tuple[int, str], int] = {}
    living = set(alive)
    if src is not None and old is not None and rank in src.ranks:
        for piece, witness in _witnesses(space, src, living):
            if witness == rank:
                for slot in SLOTS:
                    key = (piece.tensor, slot)
                    before[key] = (before.get(key, 0) + hash_piece(old, slot, piece, space, src.tp)) & _MASK
    after: dict[tuple[int, str], int] = {}
    elements: dict[int, int] = {}
    owned: dict[tuple[int, int, int], int] = {}
    copies = []
    mine = set(dst.owned(space, rank)) if rank in dst.ranks else set()
    for piece in new.pieces:
        hashes = [hash_piece(new, slot, piece, space, dst.tp) for slot in SLOTS]
        first = space.tensors[piece.tensor].first_copy(dst.tp, piece.shard)
        name = (piece.tensor, first, piece.start)
        if piece not in mine or piece.shard != first:
            copies.append((name, _mix(hashes)))
        else:
            owned[name] = _mix(hashes)
            elements[piece.tensor] = elements.get(piece.tensor, 0) + piece.numel
            for slot, value in zip(SLOTS, hashes, strict=True):
                after[piece.tensor, slot] = (after.get((piece.tensor, slot), 0) + value) & _MASK
    return Census(before, after, elements, owned, tuple(copies), step if src is not None and rank in living else None)


def check_census(space: Space, reports: Mapping[int, Census], compare: bool, step: int) -> None:
    """The manager's verdict over all ranks' evidence.

    Args:
        compare: False at a fresh start, where there is no source.
        step: optimizer steps committed.

    Raises:
        ValueError: naming the first tensor, slot or step that does not add up.
    """
    for rank, census in reports.items():
        if census.step not in (None, step):
            raise ValueError(f"census: rank {rank} has seen {census.step} steps of {step}")
    elements: dict[int, int] = {}
    owners: dict[tuple[int, int, int], int] = {}
    for census in reports.values():
        for tensor, n in census.elements.items():
            elements[tensor] = elements.get(tensor, 0) + n
        owners.update(census.owned)
    for ordinal, logical in enumerate(space.tensors):
        if elements.get(ordinal, 0) != logical.numel:
            raise ValueError(f"census: {logical.name} has {elements.get(ordinal, 0)} of {logical.numel} elements owned")
    for rank, census in reports.items():
        for key, value in census.copies:
            if owners.get(key) != value:
                raise ValueError(f"census: rank {rank} holds another {space.tensors[key[0]].name} than its owner")
    if compare:
        for ordinal, logical in enumerate(space.tensors):
            for slot in SLOTS:
                source = sum(c.before.get((ordinal, slot), 0) for c in reports.values()) & _MASK
                target = sum(c.after.get((ordinal, slot), 0) for c in reports.values()) & _MASK
                if source != target:
                    raise ValueError(f"census: {logical.name}.{slot} changed in transit")


def _witnesses(space: Space, layout: Layout, alive: set[int]) -> Iterable[tuple[Piece, int]]:
    """Each piece of the source once, with the first living rank that holds it."""
    for ordinal, tensor in enumerate(space.tensors):
        copies = tensor.copies(layout.tp)
        for shard in range(0, layout.tp, copies):
            for piece, owner in layout.pieces(tensor, ordinal, shard):
                same = range(shard, shard + copies)
                holders = ((s, r) for s in same for r in layout.holders(tensor, s, owner))
                held = next(((dataclasses.replace(piece, shard=s), r) for s, r in holders if r in alive), None)
                if held is not None:
                    yield held


def _mix(hashes: list[int]) -> int:
    total = 0
    for value in hashes:
        total = (total * 0x100000001B3 + value) & _MASK
    return total
