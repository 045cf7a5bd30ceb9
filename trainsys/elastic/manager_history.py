"""What the manager writes down: who came and went, every epoch, every verdict, and how the run ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.book import Book
from trainsys.elastic.history import History, fingerprint, runs
from trainsys.elastic.links import Absent, Link
from trainsys.elastic.messages import Open, Proposal
from trainsys.elastic.rank_history import bits
from trainsys.parallel.step import Decision
from trainsys.space.layout import Layout
from trainsys.space.portions import Held
from trainsys.space.tensor import LogicalTensor, Space


class ManagerHistory(History):
    """The manager's lines, in the file that its agent keeps. A manager that takes over goes on in it.

    Args:
        take: one line; None where no history is kept.
        book: of the manager before, or a new one.
    """

    def __init__(
        self, config: RunConfig, space: Space, book: Book, take: Callable[[Mapping[str, Any]], None] | None
    ) -> None:
        super().__init__(take if book.run else None)
        self.run = book.run
        elastic = config.elastic
        if book.epoch >= 0 or book.members:
            self.add("took_over", pid=os.getpid(), epoch=book.epoch, step=book.step)
        elif self.on:
            self.begin(
                book.run, start_step=book.step, steps=config.train.steps,
                global_size=config.batch.global_size, tokens=config.batch.tokens, emulated=config.train.emulate,
                heartbeat_limit_s=elastic.heartbeat_limit_s, comm_timeout_s=elastic.comm_timeout_s,
                stall_limit_s=elastic.stall_limit_s,
                tensors=[_brief(tensor) for tensor in space.tensors],
            )  # fmt: skip

    def joined(self, rank: int, node: int, pid: int) -> None:
        self.add("joined", rank=rank, node=node, pid=pid)

    def returned(self, rank: int) -> None:
        """A member of the manager before has found this one."""
        self.add("returned", rank=rank)

    def lost(self, rank: int, cause: str, epoch: int, step: int, link: Link | Absent) -> None:
        """A rank is out, after it was fenced. `silent_s` of a hang, `forgiven_s` of them while this process slept."""
        if self.on:
            silent_s = time.monotonic() - link.heard
            self.add(
                "lost", rank=rank, cause=cause, epoch=epoch, step=step, silent_s=silent_s, forgiven_s=link.forgiven_s
            )

    def left(self, rank: int, epoch: int, step: int) -> None:
        """A rank that had asked to be let go holds nothing any more and is told to leave."""
        self.add("left", rank=rank, epoch=epoch, step=step)

    def called_off(self, epoch: int, step: int, reason: str) -> None:
        """Everybody is told to get ready for `epoch`."""
        self.add("called_off", epoch=epoch, step=step, reason=reason)

    def opened(self, order: Open) -> None:
        """Everybody is told where to go."""
        if self.on:
            self.add(
                "opened", epoch=order.epoch, step=order.step, fresh=order.src is None, participants=order.participants,
                alive=order.alive, kept=order.keep, resume=order.resume, held=_where(order.held),
                portions=order.portions, fingerprint=fingerprint(order.dst), layout=order.dst.to_dict(),
            )  # fmt: skip

    def switched(self, epoch: int, step: int, layout: Layout, staged: Sequence[int]) -> None:
        """All evidence is right, before anybody is told: `layout` counts."""
        if self.on:
            self.add("switched", epoch=epoch, step=step, layout=str(layout), ranks=layout.ranks, staged=sorted(staged))

    def committed(self, decision: Decision, proposals: Mapping[int, Proposal], epoch: int) -> None:
        """Every rank of the layout has proposed, before anybody is told: the step counts."""
        if self.on:
            used = {mb: s for p in proposals.values() for mb, s in p.report.samples.items()}
            samples = runs(position for mb in sorted(used) for position in used[mb])
            self.add(
                "committed", epoch=epoch, step=decision.step, ranks=sorted(proposals), samples=samples, **bits(decision)
            )

    def ignored(self, rank: int, message: Any) -> None:
        """A message of an epoch that is over."""
        if self.on and hasattr(message, "epoch"):
            self.add("ignored", rank=rank, kind=type(message).__name__.lower(), epoch=message.epoch)

    def ended(self, step: int, reason: str, missing: str, ranks: Sequence[int], held: Sequence[Held]) -> None:
        """Everybody is told to leave. `missing`: coordinates that none of `ranks`, who are left, holds any more."""
        self.add("ended", step=step, reason=reason, missing=missing, ranks=sorted(ranks), held=_where(held))


def _where(held: Sequence[Held]) -> list[list[int]]:
    """(epoch of the layout, first portion, end) of what stands where."""
    return [[h.epoch, h.first, h.stop] for h in held]


def _brief(tensor: LogicalTensor) -> dict[str, Any]:
    """A tensor without what is as usual."""
    return {f.name: getattr(tensor, f.name) for f in fields(tensor) if getattr(tensor, f.name) != f.default}
