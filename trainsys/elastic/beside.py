"""The next layout is made beside the steps: its groups are connected and its state is filled while training goes on.

LiveR's aim (arXiv:2605.22014), by the means of the snapshots here: the state as of one step is brought over by another
thread, and every step that counts meanwhile is replayed on it from the reduced gradients, which travel the same ways.
So the destination is one more mirror, and the same bits; what is left for the pause is the last step's gradient.
Gradients wait in memory while the state is on its way; so the pause comes after a few steps, ready or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from torch import Tensor

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError, Group
from trainsys.config import OptimConfig
from trainsys.elastic.messages import Prepare
from trainsys.elastic.staging import Staging
from trainsys.elastic.transit import Transit, carry_out, most_staged, steps_of
from trainsys.parallel.optimizer import Update, adamw
from trainsys.parallel.state import FlatState
from trainsys.parallel.step import Decision
from trainsys.space.rounds import PART_BYTES
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Transition, transition

_GRAD = ("grad",)


@dataclass(frozen=True)
class _Flat:
    """One flat, laid out like a state."""

    slots: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Replay:
    """A step that counts; without an update it was skipped."""

    update: Update | None
    grad: Tensor | None  # laid out like the old state; None where nothing is held


class Beside:
    """One rank's preparation of one change.

    Args:
        order: what is prepared.
        comm: for its groups, with none yet; `adopt` them when all is done.
        groups: those wanted, the one of all participants among them.
        old: this rank's state under the source, or None. It is copied at once, and may change when `copied` is set.
        staging: makes a new budget of buffers.
        tell: called from another thread: with nothing when the state has caught up with the steps so far, or with what
            went wrong.

    Attributes:
        new: the state under the destination, after `finish`.
        received: bytes.
        steps: optimizer steps in `new`.
    """

    def __init__(
        self, order: Prepare, space: Space, rank: int, comm: Communicator, groups: Sequence[tuple[int, ...]],
        old: FlatState | None, optim: OptimConfig, dtype: torch.dtype, device: torch.device,
        staging: Callable[[], Staging], tell: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.order, self.comm, self.steps, self.received = order, comm, order.step, 0
        self.new = FlatState((), dtype, device)
        self.void = self._told = self._over = False
        self._space, self._rank, self._groups, self._optim = space, rank, groups, optim
        self._old, self._dtype, self._device, self._staging, self._tell = old, dtype, device, staging, tell
        self._queue: SimpleQueue[_Replay | None] = SimpleQueue()
        self._ended: SimpleQueue[str] = SimpleQueue()
        self._copied = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="beside").start()

    # -- the main thread -----------------------------------------------------------------------------------------

    def copied(self) -> None:
        """Wait until the source may change."""
        self._copied.wait()

    def follow(self, decision: Decision, grad: Tensor | None) -> None:
        """A step counts.

        Args:
            grad: the reduced gradient, laid out like the source state and not to be changed any more; None on a rank
                that holds nothing.
        """
        self._queue.put(_Replay(None if decision.skipped else decision.update, grad))

    def finish(self, step: int) -> FlatState:
        """The new state, after `step` optimizer steps. Raises CommError if it could not be made."""
        self._queue.put(None)
        error = "it was called off" if self.void else self._ended.get()
        if error:
            raise CommError(f"preparing epoch {self.order.epoch}: {error}")
        assert self.steps == step, (self.steps, step)
        return self.new

    def drop(self) -> None:
        """Call it off; from any thread."""
        self.void = True
        self.comm.abort(self.order.epoch)
        self._copied.set()
        self._queue.put(None)
        self._ended.put("it was called off")
        if self._over:
            self.comm.close()

    # -- the other thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._bring()
            while (replay := self._next()) is not None:
                self._replay(replay)
        except Exception as error:  # whatever it is, the change can still be made in a pause
            self._copied.set()
            self._ended.put(str(error) or repr(error))
            if not self.void:
                self._tell(str(error) or repr(error))
        else:
            self._ended.put("")
        self._over = True
        if self.void:
            self.comm.close()

    def _next(self) -> _Replay | None:
        """The next step; the first time that it has to be waited for, this rank is ready."""
        if not self._told and self._queue.empty():
            self._told = True
            self._tell("")
        return self._queue.get()

    def _bring(self) -> None:
        """Copy the source, connect, move the copy."""
        order, rank = self.order, self._rank
        copy, self._old = self._old and self._old.copied(), None
        self._copied.set()
        self.comm.reconfigure(order.epoch, self._groups)
        group = self._group()
        share = transition(self._space, order.src, order.dst, rank, order.alive, lambda r: order.nodes.get(r, -1))
        self.new = carry_out(share, self._space, order.dst, copy, group, self._dtype, self._device, self._staging())
        copy = None  # what follows needs its room
        self.received = self._bytes_of(share, len(SLOTS))
        self._share, self._budget = share, self._staging()
        steps = steps_of(share, group, min(PART_BYTES, self._budget.budget // 2), self._dtype, _GRAD)
        self._budget.prepare(most_staged(steps), torch.empty(0, dtype=self._dtype, device=self._device))
        self._grad = torch.empty(self.new.numel, dtype=self._dtype, device=self._device)

    def _replay(self, replay: _Replay) -> None:
        """One optimizer step on the new state, by the gradient of the old one."""
        if replay.update is not None:
            group, own = self._group(), _Flat({_GRAD[0]: replay.grad}) if replay.grad is not None else None
            steps = steps_of(self._share, group, min(PART_BYTES, self._budget.budget // 2), self._dtype, _GRAD)
            into = _Flat({_GRAD[0]: self._grad})
            Transit(own, into, group, self._budget, _GRAD).run(steps, self._share.local)
            self.received += self._bytes_of(self._share, 1)
            if self.new.numel:
                adamw(self._optim, self.new.slots, self._grad, replay.update)
        self.steps += 1

    def _group(self) -> Group | None:
        everyone = tuple(sorted(self.order.participants))
        return self.comm.group(everyone) if len(everyone) > 1 else None

    def _bytes_of(self, share: Transition, slots: int) -> int:
        return slots * self._dtype.itemsize * sum(m.box.numel for m in share.receives)
