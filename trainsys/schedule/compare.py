"""How far a predicted step is from the measured one, action by action and as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainsys.schedule.outcome import Event


@dataclass(frozen=True)
class Comparison:
    """One traced step against its prediction; forward and backward only.

    Attributes:
        step: which one.
        predicted_s, measured_s: from the first action's start to the last one's end.
        step_error: predicted / measured - 1.
        timeline_error: mean of |predicted - measured| of the ends of all compute actions, over the measured step.
    """

    step: int
    predicted_s: float
    measured_s: float
    step_error: float
    timeline_error: float


def compare(step: int, predicted: Sequence[Event], measured: Sequence[Event]) -> Comparison | None:
    """Hold the same actions against each other, both steps on a clock that starts with their first action.

    Returns:
        None where they are not the same actions: the layout or the schedule has changed.
    """
    ours, theirs = _ends(predicted), _ends(measured)
    if ours.keys() != theirs.keys() or not ours:
        return None
    predicted_s, measured_s = max(ours.values()), max(theirs.values())
    apart = sum(abs(ours[key] - theirs[key]) for key in ours) / len(ours)
    return Comparison(step, predicted_s, measured_s, predicted_s / measured_s - 1, apart / measured_s)


def _ends(events: Sequence[Event]) -> dict[str, float]:
    """Compute action -> seconds from the step's first one to its end."""
    compute = [e for e in events if e.action.is_compute]
    start = min((e.start_s for e in compute), default=0.0)
    return {str(e.action): e.end_s - start for e in compute}
