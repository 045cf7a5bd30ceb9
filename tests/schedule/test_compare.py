"""The distance of two timelines in one number."""

from __future__ import annotations

import pytest

from trainsys.schedule import Action, Event
from trainsys.schedule.compare import compare


def step(*spans: tuple[str, float, float]) -> list[Event]:
    return [Event(0, Action.parse(name), start, end) for name, start, end in spans]


def test_errors_by_hand() -> None:
    predicted = step(("0F0", 0, 1), ("0SEND_F0", 1, 9), ("0I0", 1, 2), ("0W0", 2, 3))
    measured = step(("0F0", 5, 6.5), ("0I0", 6.5, 8), ("0W0", 8, 9))
    found = compare(7, predicted, measured)
    assert found is not None
    assert (found.step, found.predicted_s, found.measured_s) == (7, 3, 4)
    assert found.step_error == pytest.approx(3 / 4 - 1)
    assert found.timeline_error == pytest.approx((0.5 + 1 + 1) / 3 / 4)


def test_other_actions_are_not_compared() -> None:
    assert compare(0, step(("0F0", 0, 1)), step(("0F1", 0, 1))) is None
    assert compare(0, [], []) is None
