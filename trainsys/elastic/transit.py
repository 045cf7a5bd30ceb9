"""Carry out a transition: fill the new storage from local copies and peers, in rounds, without touching the old one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.rounds import rounds
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Move, transition

STAGING_BYTES = 32 << 20


def run_transition(
    space: Space,
    src: Layout,
    dst: Layout,
    rank: int,
    alive: Collection[int],
    nodes: Mapping[int, int],
    old: FlatState | None,
    group: Group | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[FlatState, int]:
    """This rank's share of going from `src` to `dst`.

    Args:
        alive: ranks of `src` that still hold their state.
        old: this rank's state under `src`, unchanged by this call; None for a rank that joins.
        group: contains all participants.

    Returns:
        The new state and the bytes received for it.

    Raises:
        CommError: the new state is void, the old one whole.
    """
    share = transition(space, src, dst, rank, alive, lambda r: nodes.get(r, -1))
    storage = dst.storage(space, rank) if rank in dst.ranks else ()
    new = FlatState(storage, dtype, device)
    for move in share.local:
        assert old is not None
        for slot in SLOTS:
            _target(new, slot, move).copy_(_source(old, slot, move))
    received = 0
    participants = group.ranks if group is not None else (rank,)
    budget = STAGING_BYTES // (len(SLOTS) * dtype.itemsize)
    for step in rounds(share, participants, budget):
        assert group is not None
        for i in range(max(len(step.sends), len(step.receives))):
            out = step.sends[i] if i < len(step.sends) else ()
            into = step.receives[i] if i < len(step.receives) else ()
            received += _swap(group, step.to, step.source, out, into, old, new, dtype, device)
    return new, received


def _swap(
    group: Group,
    to: int,
    source: int,
    out: Sequence[Move],
    into: Sequence[Move],
    old: FlatState | None,
    new: FlatState,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """One part of a round: pack, exchange, unpack. Returns the bytes received."""
    sends, receives = [], []
    if out:
        assert old is not None
        packed = torch.cat([_source(old, slot, m).reshape(-1) for m in out for slot in SLOTS])
        sends.append((to, packed, 0))
    buffer: Tensor | None = None
    if into:
        buffer = torch.empty(len(SLOTS) * sum(m.box.numel for m in into), dtype=dtype, device=device)
        receives.append((source, buffer, 0))
    exchange(group, sends, receives)
    if buffer is None:
        return 0
    at = 0
    for move in into:
        for slot in SLOTS:
            _target(new, slot, move).copy_(buffer[at : at + move.box.numel].view(move.box.shape))
            at += move.box.numel
    return buffer.numel() * dtype.itemsize


def _source(state: FlatState, slot: str, move: Move) -> Tensor:
    return state.run(slot, move.src_at)[move.box.within(move.src_at.box)]


def _target(state: FlatState, slot: str, move: Move) -> Tensor:
    return state.run(slot, move.dst_at)[move.box.within(move.dst_at.box)]
