"""Emulated training: stages sleep for as long as the planner says that they compute, and all else is real.

Ranks that sleep do not disturb each other, so that a few cores run a step of many ranks with true overlap. The messages
are as many as of the real step, go through the same groups and arrive when the planned link would have brought them;
gradients (of a stand-in model, all zero) are reduced, and faults strike, as always. Nothing is learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.group import Group
from trainsys.config import RunConfig
from trainsys.parallel.stage import StageRunner
from trainsys.parallel.timed_links import TimedLinks, sleep_until
from trainsys.planner.timeline import timeline
from trainsys.schedule.actions import Kind
from trainsys.schedule.schedule import Schedule


@dataclass(frozen=True)
class Emulation:
    """What one layout of a run takes.

    Attributes:
        schedule: of the emulated model, which need not be the stand-in's: FLOPs decide some of them.
        seconds: by kind and stage, of a whole microbatch.
        scale: of each microbatch, its share of a whole one; None: all are whole.
        send_s: source and destination lane -> seconds of a message.
        slow: how many times as long this rank takes just now.
    """

    schedule: Schedule
    seconds: Mapping[Kind, Sequence[float]]
    scale: Sequence[float] | None
    send_s: Callable[[int, int], float]
    slow: Callable[[], float] = lambda: 1.0

    @classmethod
    def of(cls, config: RunConfig, slow: Callable[[], float] = lambda: 1.0) -> Emulation:
        """Of `config` with its real model, ``train.emulate_scale`` times as long as planned."""
        planned, factor = timeline(config), config.train.emulate_scale
        costs = planned.costs
        table = costs.table(planned.schedule.routes.num_stages)
        seconds = {kind: [factor * s for s in row] for kind, row in table.items()}
        return cls(planned.schedule, seconds, costs.scale, lambda src, dst: factor * costs.hop_s(src, dst), slow)

    def runner(self, stage: int) -> Callable[..., StageRunner]:
        """What makes the runner of `stage`, from the arguments of a `StageRunner`."""
        return partial(SleepingRunner, {kind: row[stage] for kind, row in self.seconds.items()}, self.scale, self.slow)

    def links(self, group: Group, lane: int, rank_of: Mapping[int, int]) -> Any:
        """`group` as it would be on the planned links, for the executor of `lane`."""
        lane_of = {rank: other for other, rank in rank_of.items()}
        return TimedLinks(
            group, lambda dst: self.send_s(lane, lane_of[dst]), lambda src: self.send_s(lane_of[src], lane)
        )


class SleepingRunner(StageRunner):
    """A `StageRunner` that sleeps where that one computes; its gradients are zero and its losses undefined."""

    def __init__(
        self, seconds: Mapping[Kind, float], scale: Sequence[float] | None, slow: Callable[[], float], *args: Any,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(*args, **options)
        self._seconds, self._scale, self._slow = seconds, scale, slow
        self._copying: dict[int, Future[None]] = {}

    def forward(self, microbatch: int, x: Tensor | None) -> Tensor | None:
        self._spend(Kind.F, microbatch, tuple(self._parts))
        if self.model.output is None:
            return self.boundary(microbatch)
        self.losses[microbatch] = float("nan")
        return None

    def recompute(self, microbatch: int) -> None:
        self._arrive(microbatch)
        self._spend(Kind.R, microbatch, tuple(self._parts))

    def backward(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        self._arrive(microbatch)
        self._spend(Kind.B, microbatch, tuple(self._parts)[::-1], self._gradients)
        return self.boundary(microbatch)

    def backward_input(self, microbatch: int, grad: Tensor | None) -> Tensor | None:
        self._arrive(microbatch)
        self._spend(Kind.I, microbatch, tuple(self._parts)[::-1])
        return self.boundary(microbatch)

    def backward_weight(self, microbatch: int) -> None:
        start = time.perf_counter()
        for part in tuple(self._parts)[::-1]:
            self._gradients(microbatch, part)
        sleep_until(start + self._of(Kind.W, microbatch))

    def offload(self, microbatch: int) -> None:
        assert self._copier is not None
        self._copying[microbatch] = self._copier.out(partial(time.sleep, self._of(Kind.OFFLOAD, microbatch)))

    def reload(self, microbatch: int) -> None:
        assert self._copier is not None
        copy = partial(time.sleep, self._of(Kind.RELOAD, microbatch))
        self._copying[microbatch] = self._copier.back(copy, self._copying[microbatch])

    def boundary(self, microbatch: int) -> Tensor:
        """A message: when it arrives."""
        return torch.zeros(1, dtype=torch.float64)

    def _of(self, kind: Kind, microbatch: int) -> float:
        scaled = self._scale is not None and kind not in (Kind.OFFLOAD, Kind.RELOAD)
        return self._seconds[kind] * (self._scale[microbatch] if scaled and self._scale else 1.0) * self._slow()

    def _spend(
        self, kind: Kind, microbatch: int, parts: Sequence[range],
        then: Callable[[int, range], None] = lambda microbatch, part: None,
    ) -> None:  # fmt: skip
        """Sleep through the parts, each in its turn with its weights gathered; what `then` takes counts as sleep."""
        end = time.perf_counter() + self._of(kind, microbatch)
        for place, part in enumerate(parts):
            left = end - time.perf_counter()
            with self._whole(part):
                time.sleep(max(0.0, left / (len(parts) - place)))
            then(microbatch, part)
        sleep_until(end)

    def _gradients(self, microbatch: int, part: range) -> None:
        self._on_grads(microbatch, {name: torch.zeros_like(self.params[name]) for name in self._parts[part]})

    def _arrive(self, microbatch: int) -> None:
        if microbatch in self._copying:
            self._copying.pop(microbatch).result()
