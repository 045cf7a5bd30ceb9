"""A state on its way through the cp ranks, forward and backward, beside whatever else is computed.

Rank r makes of the state before it S ↦ T_r S + S_r (`models/linear_attention.py`), and each wants what the ranks before
it make of nothing. In the backward each wants the gradient of what it hands on: G ↦ T_rᵀ G + dS_r from the last rank to
the first, the same scan the other way. A `Method` does one such scan; its order of additions is that of the ranks, so
that no bit depends on who is late.

A scan starts as soon as the rank's own state is known, on a thread of its own, and ends when its result is needed. In
the backward the gradient arrives at `_Arrive`, which starts the scan, and is handed out by `_Depart`. Between them
autograd does what was recorded between them, which is the part that needs no other rank (it takes the latest first).

    B = microbatch, H = heads, dk and dv = features of keys and values
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainsys.comm.group import Group
from trainsys.comm.tags import SCANS

TAG = SCANS  # blocks count upwards


class Team(Protocol):
    """Who shares the sequences: of `ContextParallel` what is needed here. `members`: ranks by cp index."""

    @property
    def group(self) -> Group: ...
    @property
    def members(self) -> tuple[int, ...]: ...
    @property
    def index(self) -> int: ...
    @property
    def size(self) -> int: ...


class Line:
    """The ranks in the order in which the state goes through them: by cp index, or back."""

    def __init__(self, team: Team, back: bool) -> None:
        self.group, self.back = team.group, back
        self.ranks = team.members[::-1] if back else team.members
        self.place = team.size - 1 - team.index if back else team.index
        self.tag = TAG | back << 19

    @property
    def earlier(self) -> tuple[int, ...]:
        return self.ranks[: self.place]

    @property
    def later(self) -> tuple[int, ...]:
        return self.ranks[self.place + 1 :]


Method = Callable[[Line, Tensor, Tensor], Tensor]
"""(line, state [B, H, dk, dv], transition) -> what the ranks before make of nothing [B, H, dk, dv].

The transition is as for `carry`; state and transition are contiguous or not, of one dtype, and of one shape each on
all ranks."""


class Scan:
    """Scans of one team by one method, one at a time; what an abandoned step has left under way is forgotten."""

    def __init__(self, team: Team, method: Method) -> None:
        self._lines, self._method = (Line(team, False), Line(team, True)), method
        self._result: SimpleQueue[Tensor | Exception] = SimpleQueue()

    def depart(self, state: Tensor, transition: Tensor) -> tuple[Tensor, Tensor]:
        """Send this rank's state and transition on their way; returns both for `arrive`."""
        return cast(tuple[Tensor, Tensor], cast(Any, _Depart).apply(state, transition, self))

    def arrive(self, state: Tensor, transition: Tensor) -> Tensor:
        """The state before this rank's first position, [B, H, dk, dv]."""
        return cast(Tensor, cast(Any, _Arrive).apply(state, transition, self))

    def start(self, state: Tensor, transition: Tensor, back: bool) -> None:
        self._result = result = SimpleQueue[Tensor | Exception]()
        order = (self._lines[back], state.detach(), transition.detach(), result)
        threading.Thread(target=self._run, args=order, daemon=True, name="scan").start()

    def wait(self) -> Tensor:
        """Raises CommError if the group was aborted meanwhile."""
        result = self._result.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _run(self, line: Line, state: Tensor, transition: Tensor, result: SimpleQueue[Tensor | Exception]) -> None:
        try:
            with torch.no_grad():
                result.put(self._method(line, state, transition))
        except Exception as error:
            result.put(error)


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, transition: Tensor, scan: Scan) -> tuple[Tensor, Tensor]:
        ctx.scan = scan
        scan.start(state, transition, back=False)
        return state.view_as(state), transition.view_as(transition)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, before: Tensor, transition: Tensor) -> tuple[Tensor, Tensor, None]:
        """`before` and `transition` are what `_Arrive` hands over in place of gradients."""
        after = ctx.scan.wait()
        return after, _of_transition(after, before, transition), None


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, transition: Tensor, scan: Scan) -> Tensor:
        ctx.scan, before = scan, scan.wait()
        ctx.save_for_backward(before, transition)
        return before

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        before, transition = ctx.saved_tensors
        matrix = transition.shape[-1] > 1
        ctx.scan.start(grad, transition.mT if matrix else transition, back=True)
        return before, transition, None


def _of_transition(after: Tensor, before: Tensor, transition: Tensor) -> Tensor:
    """Gradient of T where T · before has gradient `after`."""
    if transition.shape[-1] > 1:
        return after @ before.mT
    return (after * before).sum_to_size(transition.shape)
