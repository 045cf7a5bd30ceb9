"""Carry out a transition: fill the new storage from local copies and peers, without touching the old one.

Messages leave in the order of the rounds and several rounds may be under way, as far as the staging budget goes; a
rank only ever waits for its oldest. So the message that comes first in the common order (round, part) among the
unfinished is posted at both of its ends, whatever the others wait for: nobody waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Group
from trainsys.elastic.staging import Staging
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.rounds import Round, rounds
from trainsys.space.spans import Cut, cut, spans
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Move, transition

PART_BYTES = 4 << 20  # of all slots together: a part of a round, and a staging buffer
LEAST_BYTES = 256 << 10  # per slot: from here on a message of its own costs less than two copies


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
    staging: Staging | None = None,
) -> tuple[FlatState, int]:
    """This rank's share of going from `src` to `dst`.

    Args:
        alive: ranks of `src` that still hold their state.
        old: this rank's state under `src`, unchanged by this call; None for a rank that joins.
        group: contains all participants.
        staging: the budget, and afterwards the bytes counted: at most old + new + budget.

    Returns:
        The new state and the bytes received for it.

    Raises:
        CommError: the new state is void, the old one whole.
    """
    share = transition(space, src, dst, rank, alive, lambda r: nodes.get(r, -1))
    storage = dst.storage(space, rank) if rank in dst.ranks else ()
    new = FlatState(storage, dtype, device, fill=False)  # a transition writes every element once
    staging = staging or Staging()
    staging.hold(*new.slots.values(), *(old.slots.values() if old is not None else ()))
    participants = group.ranks if group is not None else (rank,)
    part = min(PART_BYTES, staging.budget // 2) // (len(SLOTS) * dtype.itemsize)
    steps = _steps(rounds(share, participants, part), LEAST_BYTES // dtype.itemsize)
    transit = _Transit(old, new, group, staging, dtype, device)
    transit.run(steps, share.local)
    return new, len(SLOTS) * dtype.itemsize * sum(m.box.numel for m in share.receives)


@dataclass
class _Step:
    """One part of a round, and what is under way for it."""

    to: int
    source: int
    out: Cut
    into: Cut
    out_tag: int  # of its first message; the messages of a pair count on from part to part
    into_tag: int
    works: list[Work] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    unpack: list[tuple[Tensor, Sequence[Move], Sequence[str]] | None] = field(default_factory=list)

    @property
    def staged(self) -> tuple[int, int]:
        """Elements of the buffer for sending and of that for receiving; 0: none is needed."""
        return self.out.staged(True, len(SLOTS)), self.into.staged(False, len(SLOTS))


def _steps(order: Sequence[Round], least: int) -> list[_Step]:
    steps = []
    for step in order:
        out_tag = into_tag = 0
        for out, into in zip_longest(step.sends, step.receives, fillvalue=()):
            steps.append(_Step(step.to, step.source, cut(out, least), cut(into, least), out_tag, into_tag))
            out_tag += steps[-1].out.messages(len(SLOTS))
            into_tag += steps[-1].into.messages(len(SLOTS))
    return steps


class _Transit:
    """Posts steps while there is room for them, and finishes them in order."""

    def __init__(
        self, old: FlatState | None, new: FlatState, group: Group | None, staging: Staging, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.old, self.new, self.group, self.staging = old, new, group, staging
        self.dtype, self.device = dtype, device

    def run(self, steps: Sequence[_Step], local: Sequence[Move]) -> None:
        """Everything of one rank: the first messages leave before the local copies are made."""
        self.staging.prepare(max((n for s in steps for n in s.staged), default=0), self.dtype, self.device)
        under_way: deque[_Step] = deque()
        waiting = deque(steps)
        while waiting or under_way:
            while waiting and self._has_room(waiting[0]):
                under_way.append(waiting.popleft())
                self._post(under_way[-1])
            if local:
                self._copy(local)
                local = ()
            if under_way:
                self._finish(under_way.popleft())
        self._copy(local)

    def _has_room(self, step: _Step) -> bool:
        return sum(n > 0 for n in step.staged) <= self.staging.available

    def _post(self, step: _Step) -> None:
        """Receives before sends, so that no notice of readiness waits behind payload."""
        group, (leaving, arriving) = self.group, step.staged
        assert group is not None
        at, buffer = 0, self._buffer(step, arriving)
        for tag, (span, slots) in enumerate(step.into.each(SLOTS), step.into_tag):
            numel = len(slots) * span.numel
            if span.into is not None:
                target = self.new.slots[slots[0]][span.into : span.into + numel]
                step.unpack.append(None)
            else:
                target, at = buffer[at : at + numel], at + numel
                step.unpack.append((target, span.moves, slots))
            step.works.append(group.irecv(target, step.source, tag))
        at, buffer = 0, self._buffer(step, leaving)
        for tag, (span, slots) in enumerate(step.out.each(SLOTS), step.out_tag):
            assert self.old is not None
            numel = len(slots) * span.numel
            if span.out is not None:
                data = self.old.slots[slots[0]][span.out : span.out + numel]
            else:
                data, at = buffer[at : at + numel], at + numel
                torch.cat([_source(self.old, slot, m).reshape(-1) for slot in slots for m in span.moves], out=data)
            step.works.append(group.isend(data, step.to, tag))

    def _buffer(self, step: _Step, numel: int) -> Tensor:
        if not numel:
            return torch.empty(0, dtype=self.dtype, device=self.device)
        step.buffers.append(self.staging.take(numel))
        return step.buffers[-1]

    def _finish(self, step: _Step) -> None:
        """Wait for the step; what arrives in a buffer is put in place while the rest is on the wire."""
        assert self.group is not None
        self.group.wait_all(step.works, lambda i: self._unpack(step.unpack[i]) if i < len(step.unpack) else None)
        for buffer in step.buffers:
            self.staging.give(buffer)

    def _unpack(self, arrived: tuple[Tensor, Sequence[Move], Sequence[str]] | None) -> None:
        if arrived is None:
            return
        data, moves, slots = arrived
        at = 0
        for slot in slots:
            for move in moves:
                _target(self.new, slot, move).copy_(data[at : at + move.box.numel].view(move.box.shape))
                at += move.box.numel

    def _copy(self, local: Sequence[Move]) -> None:
        """What this rank already holds."""
        for span in spans(local):
            assert self.old is not None
            for slot in SLOTS:
                if span.out is not None and span.into is not None:
                    run = self.old.slots[slot][span.out : span.out + span.numel]
                    self.new.slots[slot][span.into : span.into + span.numel].copy_(run)
                else:
                    for move in span.moves:
                        _target(self.new, slot, move).copy_(_source(self.old, slot, move))


def _source(state: FlatState, slot: str, move: Move) -> Tensor:
    return state.run(slot, move.src_at)[move.box.within(move.src_at.box)]


def _target(state: FlatState, slot: str, move: Move) -> Tensor:
    return state.run(slot, move.dst_at)[move.box.within(move.dst_at.box)]
