"""The screen during a run: one live line, and above it a sentence for everything that happened."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

_EVERY_S = 2.0  # between lines where there is no terminal to redraw
_REDRAW_S = 0.1


class Screen(Protocol):
    """The part of `rich.console.Console` that is used here."""

    @property
    def is_terminal(self) -> bool: ...

    def print(self, *objects: Any, **options: Any) -> None: ...


class Progress:
    """Step, loss, rate, memory and time left; redrawn in place on a terminal, a plain line now and then elsewhere.

    Args:
        console: None shows nothing. A rich console, for the live line.
        log_every: steps between lines; the live line is redrawn at every such step.
    """

    def __init__(self, console: Screen | None, start_step: int, steps: int, log_every: int = 1) -> None:
        self._console, self._steps, self._log_every = console, steps, max(1, log_every)
        self._recent: deque[float] = deque(maxlen=20)
        self._shown = float("-inf")
        self._unshown = ""
        self._live: Any = None
        if console is not None and console.is_terminal:
            from rich.live import Live

            self._live = Live("starting ranks …", console=console, refresh_per_second=10, transient=False)  # type: ignore[arg-type]
            self._live.start()

    def say(self, sentence: str) -> None:
        """Print one sentence above the live line."""
        if self._console is not None:
            self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Show a committed step, given as its line of metrics.jsonl."""
        if self._console is None:
            return
        self._recent.append(metrics["step_s"])
        if metrics["step"] % self._log_every and metrics["step"] + 1 < self._steps:
            return
        line = self._line(metrics)
        now = time.monotonic()
        if now - self._shown < (_REDRAW_S if self._live else _EVERY_S) and metrics["step"] + 1 < self._steps:
            self._unshown = line
            return
        self._show(line, now)

    def close(self) -> None:
        """Leave the last step's line on the screen."""
        if self._unshown:
            self._show(self._unshown, time.monotonic())
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, line: str, now: float) -> None:
        self._shown, self._unshown = now, ""
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self.say(line)

    def _line(self, metrics: Mapping[str, Any]) -> str:
        left = self._steps - metrics["step"] - 1
        typical = sorted(self._recent)[len(self._recent) // 2]
        missing = "-" if metrics.get("emulated") else "not finite"
        loss = missing if metrics["loss"] is None else f"{metrics['loss']:.4f}"
        norm = missing if metrics["grad_norm"] is None else f"{metrics['grad_norm']:.3f}"
        return (
            f"step {metrics['step'] + 1:>{len(str(self._steps))}}/{self._steps}  loss {loss}  |grad| {norm}  "
            f"lr {metrics['lr']:.2e}  {metrics['tokens_per_s']:,.0f} tokens/s  {metrics['memory_gib']:.2f} GiB  "
            f"{clock(left * typical)} left  epoch {metrics['epoch']}  {metrics['layout']}"
        )


def clock(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
