"""One quantity of one place over the steps: what is usual, and since when it is not."""

from __future__ import annotations

from collections import deque
from statistics import median

REMEMBERED = 64  # steps
ENOUGH = 8  # steps after which a past says something
_SPREADS = 5.0  # robust standard deviations that are nothing unusual
_TO_SIGMA = 1.4826  # of a normal distribution, its median absolute deviation


class Past:
    """What has been usual. Steps in which it was not are left out.

    Args:
        factor: more times the usual than that is unusual, if it is also beyond what the past's own spread explains.
        steps: in a row, until it is said.
        least_s: an excess below that does not matter.

    Attributes:
        since: the first of the unusual steps in a row; None: the last one was usual.
        open: it was said, and is not over.
        ratio: of the newest value to the usual.
    """

    def __init__(self, factor: float, steps: int, least_s: float) -> None:
        self._factor, self._steps, self.least_s = factor, steps, least_s
        self._usual: deque[float] = deque(maxlen=REMEMBERED)
        self._row = self._calm = 0
        self.since: int | None = None
        self.open = False
        self.ratio = 1.0

    @property
    def usual_s(self) -> float | None:
        """Median; None while too little is known."""
        return median(self._usual) if len(self._usual) >= ENOUGH else None

    def compare(self, value_s: float, usual_s: float | None = None) -> float:
        """Its ratio to the usual, or to `usual_s`; 1 while nothing is known."""
        usual_s = self.usual_s if usual_s is None else usual_s
        self.ratio = 1.0 if usual_s is None else value_s / max(usual_s, 1e-9)
        return self.ratio

    def take(
        self, step: int, value_s: float, usual_s: float | None = None, common: float = 1.0, steps: int = 0
    ) -> bool | None:
        """Count a step.

        Args:
            usual_s: to compare with; by default its own past.
            steps: more of them in a row than usual, until it is said.
            common: factor by which everything was slower in this step, which is nobody's fault.

        Returns:
            True when it becomes slow, False when it is over, None while nothing changes.
        """
        usual_s, value_s = self.usual_s if usual_s is None else usual_s, value_s / common
        if usual_s is None:
            self._usual.append(value_s)
            return None
        self.compare(value_s, usual_s)
        unusual = self.ratio > self._factor and value_s - usual_s > max(self.least_s, _SPREADS * self._spread_s())
        if unusual or (self.open and self.ratio > (1 + self._factor) / 2 and value_s - usual_s > self.least_s / 2):
            self._calm = 0
            self.since = step if self.since is None else self.since
            self._row += 1
            if self._row >= max(self._steps, steps) and not self.open:
                self.open = True
                return True
            return None
        self._usual.append(value_s)
        self._calm += 1
        if self.open and self._calm < self._steps:
            return None
        was, self.open, self.since, self._row = self.open, False, None, 0
        return False if was else None

    def _spread_s(self) -> float:
        if len(self._usual) < ENOUGH:
            return 0.0
        middle = median(self._usual)
        return _TO_SIGMA * median(abs(value - middle) for value in self._usual)
