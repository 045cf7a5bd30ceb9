"""Optimizer post-validation: the next step begins before the verdict on the last one is here.

Qi et al. 2023 (zero bubble, arXiv:2401.10241, §4) update at once and roll back by the inverse formulas if a clipped or
infinite gradient turns up, which is not exact when it matters. Here the state never runs ahead: only the weights that
compute are those that the state *will* have unless the gradient is clipped or not finite. The verdict then updates the
state as ever; if it says something else, the step that used the wrong weights is computed again.
"""

from __future__ import annotations

from collections.abc import Callable

from trainsys.config import RunConfig
from trainsys.elastic.control import ControlClient
from trainsys.elastic.messages import Verdict
from trainsys.parallel.engine import Engine
from trainsys.parallel.optimizer import Update, learning_rate

_NEAR = 0.9  # of the clipping norm: a step that came so near may be followed by one that is clipped


class Ahead:
    """What one rank has proposed and not yet been told.

    Args:
        on_verdict: called with each verdict as soon as it is taken, before anything follows from it.

    Attributes:
        open: whether a verdict is out, or taken and not yet followed.
        mistaken: steps computed again.
    """

    def __init__(self, config: RunConfig, control: ControlClient, on_verdict: Callable[[Verdict], None]) -> None:
        self._config, self._control, self._on_verdict = config, control, on_verdict
        self.mistaken = 0
        self.enter()

    def enter(self) -> None:
        """A new epoch. All ranks must guess alike, and one that has just come knows of no step."""
        self._norm = float("nan")  # of the last step that counts
        self.forget()

    def forget(self) -> None:
        """Whatever was proposed is void, or all of it counts."""
        self.open = False
        self._guess: Update | None = None
        self._verdict: Verdict | None = None

    def propose(self, step: int, engine: Engine) -> bool:
        """`step` has been proposed: give the engine the weights that it will leave, if that is likely to be right.

        Returns:
            Whether the next step can be computed before the verdict.
        """
        self.open = True
        optim, steps = self._config.optim, self._config.train.steps
        calm = self._norm < _NEAR * optim.clip if optim.clip else self._norm == self._norm
        if not (optim.post_validation and calm and step + 1 < steps):
            return False
        self._guess = Update(step, learning_rate(optim, step, steps), 1.0)
        engine.foresee(self._guess)
        return True

    def poll(self) -> None:
        """Take the verdict if it is here: the state can follow, and the gradient be freed."""
        if self.open and self._verdict is None and self._control.waiting(Verdict):
            self.take(self._control.expect(Verdict))

    def take(self, verdict: Verdict) -> None:
        """The step counts."""
        self._on_verdict(verdict)
        self._verdict, self._norm = verdict, float("nan") if verdict.decision.skipped else verdict.decision.grad_norm

    def close(self) -> tuple[Verdict, bool]:
        """Wait for the verdict if need be.

        Returns:
            It, and whether the weights are those that it leaves.

        Raises:
            Abandoned: the step is void.
        """
        if self._verdict is None:
            self.take(self._control.expect(Verdict))
        verdict, guess = self._verdict, self._guess
        assert verdict is not None
        self.forget()
        right = guess is not None and not verdict.decision.skipped and guess == verdict.decision.update
        self.mistaken += guess is not None and not right
        return verdict, right
