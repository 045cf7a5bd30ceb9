"""Carry out a transition: fill the new storage from local copies and peers, without touching the old one.

Messages leave in the order of the rounds and several rounds may be under way, as far as the staging budget goes; a
rank only ever waits for its oldest. So the message that comes first in the common order (round, part) among the
unfinished is posted at both of its ends, whatever the others wait for: nobody waits for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from queue import SimpleQueue
from typing import Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import CommError, Group
from trainsys.comm.waiting import outcome, wait_elsewhere
from trainsys.elastic.staging import Staging
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.rounds import PART_BYTES, rounds
from trainsys.space.strips import Cut, Strip, cut, strips
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Move, Transition, transition

LEAST_BYTES = 128 << 10  # per slot: from here on a message of its own costs less than two copies


class Flats(Protocol):
    """What is laid out like a rank's state: a `FlatState`, or one flat of the kind."""

    @property
    def slots(self) -> Mapping[str, Tensor]: ...


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
        staging: the budget, and afterwards the bytes counted: at most old + new + budget (or two moves, if larger).

    Returns:
        The new state and the bytes received for it.

    Raises:
        CommError: the new state is void, the old one whole.
    """
    share = transition(space, src, dst, rank, alive, lambda r: nodes.get(r, -1))
    new = carry_out(share, space, dst, old, group, dtype, device, staging or Staging())
    return new, len(SLOTS) * dtype.itemsize * sum(m.box.numel for m in share.receives)


def carry_out(
    share: Transition,
    space: Space,
    dst: Layout,
    old: FlatState | None,
    group: Group | None,
    dtype: torch.dtype,
    device: torch.device,
    staging: Staging,
) -> FlatState:
    """The new state of `share.rank` under `dst`, by the moves of `share`.

    Raises:
        CommError: a peer failed; `old` is whole.
    """
    rank = share.rank
    storage = dst.storage(space, rank) if rank in dst.ranks else ()
    new = FlatState(storage, dtype, device, fill=False)  # a transition writes every element once
    staging.hold(*new.slots.values(), *(old.slots.values() if old is not None else ()))
    steps = steps_of(share, group, min(PART_BYTES, staging.budget // 2), dtype)
    staging.prepare(most_staged(steps), torch.empty(0, dtype=dtype, device=device))
    Transit(old, new, group, staging).run(steps, share.local)
    return new


@dataclass
class Step:
    """One part of a round, and what is under way for it."""

    to: int
    source: int
    out: Cut
    into: Cut
    out_tag: int  # of its first message; the messages of a pair count on from part to part
    into_tag: int
    num_slots: int = len(SLOTS)
    works: list[Work] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)
    unpack: list[tuple[Tensor, Sequence[Strip], Sequence[str]] | None] = field(default_factory=list)

    @property
    def staged(self) -> tuple[int, int]:
        """Elements of the buffer for sending and of that for receiving; 0: none is needed."""
        return self.out.staged(True, self.num_slots), self.into.staged(False, self.num_slots)


def steps_of(
    share: Transition, group: Group | None, part_bytes: int, dtype: torch.dtype, slots: Sequence[str] = SLOTS
) -> list[Step]:
    """What one rank sends and receives, in order.

    Args:
        group: contains all participants; None where there is one.
        part_bytes: most that one step stages per direction.
        slots: what there is of every element.
    """
    participants, numel = group.ranks if group is not None else (share.rank,), part_bytes // dtype.itemsize
    least, steps = LEAST_BYTES // dtype.itemsize, []
    for step in rounds(share, participants, numel // len(slots)):
        out_tag = into_tag = 0
        for moves_out, moves_in in zip_longest(step.sends, step.receives, fillvalue=()):
            out, into = cut(moves_out, least), cut(moves_in, least)
            steps.append(Step(step.to, step.source, out, into, out_tag, into_tag, len(slots)))
            out_tag += sum(1 for _ in out.messages(slots))
            into_tag += sum(1 for _ in into.messages(slots))
    return steps


def most_staged(steps: Iterable[Step]) -> int:
    """Elements of the largest buffer that the steps need."""
    return max((n for s in steps for n in s.staged), default=0)


class Transit:
    """Posts steps while there is room for them, and finishes them in order. `staging` is prepared for the steps."""

    def __init__(
        self, old: Flats | None, new: Flats, group: Group | None, staging: Staging, slots: Sequence[str] = SLOTS
    ) -> None:  # fmt: skip
        self.old, self.new, self.group, self.staging, self.slots = old, new, group, staging, slots
        self.nothing = new.slots[slots[0]].new_empty(0)

    def run(self, steps: Sequence[Step], local: Sequence[Move]) -> None:
        """Everything of one rank: the first messages leave before the local copies are made."""
        waiting, under_way = deque(steps), deque[Step]()
        try:
            self._post(waiting, under_way)
            for strip in strips(local):
                assert self.old is not None
                for slot in self.slots:
                    _rows(self.new, slot, strip, False).copy_(_rows(self.old, slot, strip, True))
            while under_way:
                self._finish(under_way[0])
                under_way.popleft()
                self._post(waiting, under_way)
        except CommError:
            # gloo may be in the middle of one of them: let another thread hold them, and their tensors, until it ends
            wait_elsewhere([work for step in under_way for work in step.works], SimpleQueue(), outcome)
            raise

    def _post(self, waiting: deque[Step], under_way: deque[Step]) -> None:
        """Begin what there are buffers for. A step of its own always finds two."""
        while waiting and sum(n > 0 for n in waiting[0].staged) <= self.staging.available:
            step = waiting.popleft()
            under_way.append(step)
            self._receive(step)  # before it sends: no notice of readiness waits behind payload
            self._send(step)

    def _receive(self, step: Step) -> None:
        assert self.group is not None
        buffer, at = self._buffer(step, step.staged[1]), 0
        for tag, (run, slots) in enumerate(step.into.messages(self.slots), step.into_tag):
            numel = len(slots) * sum(s.numel for s in run)
            if len(slots) == len(run) == 1 and run[0].dst_whole:
                target = _rows(self.new, slots[0], run[0], False).view(-1)
                step.unpack.append(None)
            else:
                target, at = buffer[at : at + numel], at + numel
                step.unpack.append((target, run, slots))
            step.works.append(self.group.irecv(target, step.source, tag))

    def _send(self, step: Step) -> None:
        assert self.group is not None
        buffer, at = self._buffer(step, step.staged[0]), 0
        for tag, (run, slots) in enumerate(step.out.messages(self.slots), step.out_tag):
            assert self.old is not None
            if len(slots) == len(run) == 1 and run[0].src_whole:
                data = _rows(self.old, slots[0], run[0], True).view(-1)
            else:
                first = at
                for slot in slots:
                    for strip in run:
                        buffer[at : at + strip.numel].view(strip.rows, strip.row).copy_(
                            _rows(self.old, slot, strip, True)
                        )
                        at += strip.numel
                data = buffer[first:at]
            step.works.append(self.group.isend(data, step.to, tag))

    def _buffer(self, step: Step, numel: int) -> Tensor:
        if not numel:
            return self.nothing
        step.buffers.append(self.staging.take(numel))
        return step.buffers[-1]

    def _finish(self, step: Step) -> None:
        """Wait for the step; what arrives in a buffer is put in place while the rest is on the wire."""
        assert self.group is not None
        self.group.wait_all(step.works, lambda i: self._unpack(step.unpack[i]) if i < len(step.unpack) else None)
        for buffer in step.buffers:
            self.staging.give(buffer)

    def _unpack(self, arrived: tuple[Tensor, Sequence[Strip], Sequence[str]] | None) -> None:
        if arrived is None:
            return
        data, run, slots = arrived
        at = 0
        for slot in slots:
            for strip in run:
                _rows(self.new, slot, strip, False).copy_(data[at : at + strip.numel].view(strip.rows, strip.row))
                at += strip.numel


def _rows(state: Flats, slot: str, strip: Strip, sending: bool) -> Tensor:
    """The strip's elements in one end's storage, [rows, row]."""
    offset, step = (strip.src, strip.src_step) if sending else (strip.dst, strip.dst_step)
    return state.slots[slot].as_strided((strip.rows, strip.row), (step if strip.rows > 1 else strip.row, 1), offset)
