"""What ranks report of a step before it counts, and what is decided from all reports together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import fsum, isfinite, sqrt

from trainsys.config import RunConfig
from trainsys.parallel.optimizer import Update, clip_scale, learning_rate


@dataclass(frozen=True)
class Report:
    """One rank's part of one finished, not yet committed step.

    Attributes:
        losses: (microbatch, cp index) -> loss of that part of its sequences (already scaled by the step's tokens); only
            from the head's first tp rank of each cp index.
        samples: microbatch -> global positions of its sequences, as computed; only beside `losses`.
        squares: (tensor ordinal, shard, start of the piece) -> sum of squared gradients; each piece from its owner.
        snapshot: the way of keeping mirrors that all ranks chose in this step, and why; else empty.
    """

    step: int
    losses: dict[tuple[int, int], float] = field(default_factory=dict)
    samples: dict[int, tuple[int, ...]] = field(default_factory=dict)
    squares: dict[tuple[int, int, int], float] = field(default_factory=dict)
    snapshot: str = ""


@dataclass(frozen=True)
class Decision:
    """The verdict on one step, the same for every rank. A step counts from here on.

    `skipped` steps had an infinite or undefined gradient: their update is left out, their data stays consumed.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    grad_scale: float
    skipped: bool = False

    @property
    def update(self) -> Update:
        return Update(self.step, self.lr, self.grad_scale)


def decide(config: RunConfig, reports: Iterable[Report]) -> Decision:
    """Combine the reports of all ranks. `fsum` is exact, so neither the order nor the number of reports matters."""
    reports = list(reports)
    step = reports[0].step
    losses = {part: loss for r in reports for part, loss in r.losses.items()}
    squares = {piece: s for r in reports for piece, s in r.squares.items()}
    norm = sqrt(fsum(squares.values())) if all(map(isfinite, squares.values())) else float("nan")
    loss = fsum(losses.values()) if all(map(isfinite, losses.values())) else float("nan")
    skipped = not isfinite(norm)
    lr = learning_rate(config.optim, step, config.train.steps)
    return Decision(step, loss, norm, lr, 1.0 if skipped else clip_scale(config.optim, norm), skipped)
