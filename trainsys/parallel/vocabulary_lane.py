"""The messages of the vocabulary's passes on one lane: what E, S, T and G, and the ends of the pipeline, wait for.

Point to point like all messages of a schedule, each with its own tag; receives are posted a few actions ahead of their
use. What a lane sends to itself stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work

from trainsys.comm.group import Group
from trainsys.comm.tree import Node, Tree
from trainsys.parallel.vocabulary import STATISTICS, merged, total_of
from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.gates import first_stages
from trainsys.schedule.schedule import Schedule

_TAGGED = 1 << 28  # apart from the messages between stages
_AHEAD = 3  # uses whose receives are posted early


class Mail(IntEnum):
    """What is sent."""

    LOOKUP = 0  # every lane's E -> the first stage
    HIDDEN = 1  # the last stage's output -> every lane
    ROWS = 2  # every lane's S -> every lane
    GRAD = 3  # every lane's T -> the last stage, in two barriers
    INPUT_GRAD = 4  # the first stage's gradient of its input -> every lane


class Parts(Protocol):
    """What computes; see `VocabularyParts`. An emulation sleeps."""

    dtype: torch.dtype
    one_barrier: bool
    dim: int

    @property
    def width(self) -> int: ...
    def tokens(self, microbatch: int) -> Tensor: ...
    def lookup(self, microbatch: int) -> Tensor: ...
    def lookup_backward(self, microbatch: int, grad: Tensor) -> None: ...
    def score(self, microbatch: int, x: Tensor) -> list[Tensor]: ...
    def finish(self, microbatch: int, whole: Tensor) -> list[Tensor]: ...
    def conclude(self, microbatch: int, whole: Tensor, of_x: Tensor | None) -> Tensor: ...


class VocabularyLane:
    """Drives one rank's parts through a schedule.

    Args:
        tree: over all parts of the vocabulary.
        parts_of: lane -> its parts.
        boundary: microbatch -> an empty tensor of the shape and dtype that crosses stage boundaries.
        rank_of: lane -> global rank with the same cp and tp index as this rank.
    """

    def __init__(
        self, parts: Parts, tree: Tree, parts_of: Mapping[int, range], schedule: Schedule, lane: int,
        boundary: Callable[[int], Tensor],
        group: Group | None, rank_of: Mapping[int, int],
    ) -> None:  # fmt: skip
        self.parts, self.tree, self.schedule, self.lane, self.boundary = parts, tree, schedule, lane, boundary
        self.group, self.rank_of = group, rank_of
        self.last = schedule.routes.num_stages - 1
        self._nodes = {at: tree.roots(map(tree.leaf, own)) for at, own in parts_of.items()}
        routes = schedule.routes
        self._way = {
            mb: tuple(schedule.lane_of(stage, mb) for stage in first_stages(schedule, mb))
            for mb in range(routes.num_microbatches)
        }
        self._uses = [action for action in schedule.lanes[lane] if any(True for _ in self._mail(action))]
        self._drop()

    def begin(self) -> None:
        """Start a step, whose data `parts` has; whatever an abandoned one left is dropped."""
        self._drop()
        self.post()

    def _drop(self) -> None:
        self._posted = 0  # of `_uses`
        self._used = 0
        self._arriving: dict[tuple[Mail, int, int], tuple[Work, Tensor]] = {}
        self._here: dict[tuple[Mail, int, int], Tensor] = {}  # what stays on the lane
        self._whole: dict[int, Tensor] = {}  # row of all parts, between its two uses
        self._sending: dict[tuple[Mail, int, bool], list[tuple[Work, Tensor]]] = {}  # the last: to the last stage

    # -- what the executor asks for ------------------------------------------------------------------------------

    def wait(self, action: Action) -> None:
        """Until all has arrived that `action` needs from other lanes."""
        keys = [(mail, action.microbatch, source) for mail, source in self._mail(action)]
        arriving = {key: self._arriving.pop(key) for key in keys if key in self._arriving}
        if arriving:
            assert self.group is not None
            self.group.wait_all([work for work, _ in arriving.values()])
            self._here |= {key: buffer for key, (_, buffer) in arriving.items()}
        if self._used < len(self._uses) and action == self._uses[self._used]:
            self._used += 1
            self.post()

    def run(self, action: Action) -> None:
        """E, S, T or G; `wait` came before."""
        mb, parts = action.microbatch, self.parts
        if action.kind is Kind.E:
            self._send(Mail.LOOKUP, mb, self._first(mb), parts.lookup(mb))
        elif action.kind is Kind.S:
            rows = torch.stack(parts.score(mb, self._take(Mail.HIDDEN, mb, self._end(mb))))
            self._have_left((Mail.LOOKUP, mb))  # the first stage has computed with them
            statistics = rows[:, :, :STATISTICS].contiguous()
            for lane in self._way[mb]:
                self._send(Mail.ROWS, mb, lane, rows if lane == self._end(mb) else statistics)
        elif action.kind is Kind.T:
            grads = parts.finish(mb, self._row(mb))
            if not parts.one_barrier:
                self._send(Mail.GRAD, mb, self._end(mb), torch.stack(grads))
        else:
            parts.lookup_backward(mb, self._take(Mail.INPUT_GRAD, mb, self._first(mb)))
            self._have_left((Mail.GRAD if not parts.one_barrier else Mail.ROWS, mb), to_last=True)

    def input(self, microbatch: int) -> Tensor:
        """What the first stage computes with, [B, S, D]: a row of exactly one lane, and zeros of the others."""
        found = [self._take(Mail.LOOKUP, microbatch, lane) for lane in self._way[microbatch]]
        total = found[0].clone()
        for other in found[1:]:
            total += other
        return total

    def output(self, microbatch: int, x: Tensor) -> None:
        """Send what the last stage computed to all lanes."""
        for lane in self._way[microbatch]:
            self._send(Mail.HIDDEN, microbatch, lane, x)

    def gradient(self, microbatch: int) -> Tensor:
        """The gradient of the last stage's output, which all lanes have had."""
        self._have_left((Mail.HIDDEN, microbatch))
        whole, of_x = self._row(microbatch), None
        if not self.parts.one_barrier:
            of_x = total_of(self.tree, self._by_node(Mail.GRAD, microbatch), Tensor.add_)
        return self.parts.conclude(microbatch, whole, of_x)

    def input_gradient(self, microbatch: int, grad: Tensor) -> None:
        """Send the gradient of the first stage's input to all lanes."""
        for lane in self._way[microbatch]:
            self._send(Mail.INPUT_GRAD, microbatch, lane, grad)

    def finish(self) -> None:
        """Until all that was sent has left."""
        for mail, microbatch, to_last in list(self._sending):
            self._have_left((mail, microbatch), to_last)

    # -- messages ------------------------------------------------------------------------------------------------

    def post(self) -> None:
        """Post the receives of the next uses."""
        while self._posted < min(len(self._uses), self._used + _AHEAD):
            action = self._uses[self._posted]
            for mail, source in self._mail(action):
                self._post(mail, action.microbatch, source)
            self._posted += 1

    def _first(self, microbatch: int) -> int:
        return self.schedule.lane_of(0, microbatch)

    def _end(self, microbatch: int) -> int:
        return self.schedule.lane_of(self.last, microbatch)

    def _mail(self, action: Action) -> Iterator[tuple[Mail, int]]:
        """What an action needs from other lanes, with each's lane."""
        mb, kind = action.microbatch, action.kind
        others = [lane for lane in self._way[mb] if lane != self.lane]
        backward = kind in (Kind.B, Kind.I) and action.stage == self.last
        if kind is Kind.F and action.stage == 0:
            yield from ((Mail.LOOKUP, lane) for lane in others)
        elif kind is Kind.S and self._end(mb) != self.lane:
            yield Mail.HIDDEN, self._end(mb)
        elif kind is Kind.T or (backward and self.schedule.vocabulary == "one_barrier"):
            yield from ((Mail.ROWS, lane) for lane in others)
        elif backward:
            yield from ((Mail.GRAD, lane) for lane in others)
        elif kind is Kind.G and self._first(mb) != self.lane:
            yield Mail.INPUT_GRAD, self._first(mb)

    def _post(self, mail: Mail, microbatch: int, source: int) -> None:
        key = (mail, microbatch, source)
        if key in self._arriving or key in self._here or (mail is Mail.ROWS and microbatch in self._whole):
            return  # B and T of the last stage both use the rows
        assert self.group is not None
        buffer = self._buffer(mail, microbatch, source)
        self._arriving[key] = self.group.irecv(buffer, self.rank_of[source], self._tag(mail, microbatch)), buffer

    def _buffer(self, mail: Mail, microbatch: int, source: int) -> Tensor:
        if mail is Mail.HIDDEN:
            return self.boundary(microbatch)
        shape, parts = self.parts.tokens(microbatch).shape, self.parts
        if mail in (Mail.LOOKUP, Mail.INPUT_GRAD):
            return self.boundary(microbatch).new_empty(*shape, parts.dim)
        width = parts.dim
        if mail is Mail.ROWS:
            width = parts.width if self.lane == self._end(microbatch) else STATISTICS
        return self.boundary(microbatch).new_empty(len(self._nodes[source]), shape.numel(), width, dtype=parts.dtype)

    def _send(self, mail: Mail, microbatch: int, lane: int, value: Tensor) -> None:
        if lane == self.lane:
            self._here[mail, microbatch, lane] = value
            return
        assert self.group is not None
        value = value.contiguous()
        work = self.group.isend(value, self.rank_of[lane], self._tag(mail, microbatch))
        to_last = mail in (Mail.ROWS, Mail.GRAD) and lane == self._end(microbatch)
        self._sending.setdefault((mail, microbatch, to_last), []).append((work, value))

    def _have_left(self, sent: tuple[Mail, int], to_last: bool = False) -> None:
        """Give up the tensors of messages that have left."""
        works = self._sending.pop((*sent, to_last), [])
        if works:
            assert self.group is not None
            self.group.wait_all([work for work, _ in works])

    def _tag(self, mail: Mail, microbatch: int) -> int:
        return _TAGGED + mail * self.schedule.routes.num_microbatches + microbatch

    def _take(self, mail: Mail, microbatch: int, source: int) -> Tensor:
        return self._here.pop((mail, microbatch, source))

    def _by_node(self, mail: Mail, microbatch: int) -> dict[Node, Tensor]:
        """What all lanes sent, by node of the tree."""
        found: dict[Node, Tensor] = {}
        for lane in self._way[microbatch]:
            found.update(zip(self._nodes[lane], self._take(mail, microbatch, lane), strict=True))
        return found

    def _row(self, microbatch: int) -> Tensor:
        """The row of all parts together; on the last stage's lane asked for twice, by T and the backward."""
        if microbatch in self._whole:
            return self._whole.pop(microbatch)
        whole = total_of(self.tree, self._by_node(Mail.ROWS, microbatch), merged)
        if self.lane == self._end(microbatch):
            self._whole[microbatch] = whole
        return whole
