"""Keeps a rank's state and its peers' copies of it alike, step by step, in the way that ``elastic.snapshot`` names.

begin()  before a step counts: what the peers need is under way
wait()   everything has arrived, here and from here; or, with `when_kept`, somebody is told when it has
apply()  after it counts: purely local; a mirror's optimizer runs beside what is computed next

A way that foresees (`full`, `delta`) needs the step's update before the verdict. The learning rate is known; the
gradient's scale is once the ranks have added up its norm: it is 1 unless the norm comes near ``optim.clip``. Where it
does, that step is replayed, which is right whatever the verdict says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.group import Group
from trainsys.comm.waiting import run_elsewhere
from trainsys.config import RunConfig
from trainsys.parallel.optimizer import Update, adamw, learning_rate
from trainsys.parallel.snapshots import TECHNIQUES
from trainsys.parallel.snapshots.copies import Copies, Pending, Slots
from trainsys.parallel.snapshots.trial import Trial
from trainsys.parallel.state import FlatState
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

_NEAR = 1 - 1e-6  # of the clipping norm: the ranks' sum here and the verdict's exact one differ by less


class Keeper:
    """One rank's snapshots on one layout.

    Args:
        mesh: contains every rank of the layout; None for a single one.

    Attributes:
        chosen: what ``auto`` chose in the step computed last, and why; else empty.
    """

    def __init__(
        self, config: RunConfig, space: Space, layout: Layout, rank: int, mesh: Group | None, state: FlatState
    ) -> None:
        self.config, self.rank, self.mesh, self.state = config, rank, mesh, state
        self.copies = Copies(space, layout, rank, mesh)
        self.ways = {name: make(self.copies, config.optim) for name, make in TECHNIQUES.items()}
        kept = layout.zero or any(len(layout.teams_of(t)) <= layout.tolerates for t in space.tensors)
        wanted = config.elastic.snapshot if layout.mirrors and kept else "replay"  # else nobody keeps anything
        self.trial = Trial([*self.ways]) if wanted == "auto" else None
        self.way: str = "replay" if wanted == "auto" else wanted
        self.chosen = ""
        self._spare: list[dict[str, Tensor]] = []

    def begin(
        self, grad: Tensor, squares: Callable[[], Mapping[Any, float]], step: int, before: Pending | None, open: bool
    ) -> Pending:
        """Begin the snapshot of a step.

        Args:
            grad: [stored]; its held part is there.
            squares: makes those of the gradient, by the pieces that count here; asked where they are needed.
            before: the step before, if it was not applied when this one began; it may have been meanwhile.
            open: whether it still is not.

        Raises:
            CommError: a peer is gone.
        """
        way, tried = self.way, ""
        self.chosen = ""
        if self.trial is not None:
            way = tried = self.trial.next()
            if not tried:
                self.way, seconds = self.trial.decide(self.mesh, self.rank)
                self.trial, way = None, self.way
                if not self.ways[way].foresees:
                    self._spare.clear()
                costs = ", ".join(f"{name} {1e3 * s:.2f} ms" for name, s in seconds.items())
                self.chosen = f"{way} ({costs})"
        update = Update(step, learning_rate(self.config.optim, step, self.config.train.steps), 1.0)
        base: Slots = {}
        if self.ways[way].foresees:
            certain = self._certain(squares)
            if not certain or (before is not None and before.after is None):
                way = "replay"
            elif before is not None and open:
                assert before.after is not None
                base = before.after
            else:
                base = dict(self.state.slots)
        start = time.perf_counter()
        spare = self._spare.pop() if self._spare and self.ways[way].foresees else None
        pending = self.ways[way].begin(grad, base, spare, update)
        pending.tried, pending.seconds = tried if way == tried else "", time.perf_counter() - start
        return pending

    def _certain(self, squares: Callable[[], Mapping[Any, float]]) -> bool:
        """Whether no rank will scale the gradient. All ranks add up to the same bits, each of which one rank makes."""
        clip = self.config.optim.clip
        if clip <= 0:
            return True
        total = torch.tensor([sum(squares().values())], dtype=torch.float64)
        if self.mesh is not None:
            self.mesh.all_reduce(total)
        return bool(total.sqrt() + 1e-6 < clip * _NEAR)

    def wait(self, pending: Pending) -> None:
        """Until all copies are where they belong. Raises CommError."""
        start = time.perf_counter()
        if self.mesh is not None and pending.works:
            self.mesh.wait_all(pending.works)
        pending.works = []
        pending.then()
        pending.seconds += time.perf_counter() - start

    def when_kept(self, pending: Pending, tell: Callable[[Exception | None], None]) -> None:
        """Wait beside the caller's work; `tell` is called from another thread, with what went wrong or nothing.

        What is no CommError is our own bug, and for the caller's thread to raise.
        """
        mesh = self.mesh
        if mesh is None or not pending.works:
            tell(None)
            return

        def task() -> None:
            start, failure = time.perf_counter(), None
            try:
                mesh.finish(pending.works)
                pending.then()
            except Exception as error:
                failure = error
            pending.seconds += time.perf_counter() - start
            tell(failure)

        run_elsewhere(task)

    def apply(self, pending: Pending, decision: Decision) -> None:
        """The step counts: the optimizer on held and mirrored state, or the change to the state that is there."""
        start = time.perf_counter()
        if decision.skipped:
            pass
        elif pending.after is None:
            self._replay(pending.grad, decision.update)
        else:
            assert decision.grad_scale == 1.0, decision
            self._spare.append(dict(self.state.slots))
            self.state.slots.update(pending.after)
        pending.grad = pending.grad.new_empty(0)  # who still looks at the step shall not keep it
        if pending.tried and self.trial is not None:
            self.trial.seconds[pending.tried].append(pending.seconds + time.perf_counter() - start)

    def _replay(self, grad: Tensor, update: Update) -> None:
        """The optimizer on what is held; mirrors, which the next forward does not need, have their turn beside it."""
        held, optim = self.copies.held, self.config.optim
        mirrored = {slot: flat[held:] for slot, flat in self.state.slots.items()}  # after the step before
        adamw(optim, self.state.first(held), grad[:held], update)
        if held < self.copies.stored:
            self.state.change_later(held, lambda: adamw(optim, mirrored, grad[held:], update))
