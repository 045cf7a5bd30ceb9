"""The picture of a step: paler second runs, numbers where they fit, memory below."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainsys.schedule import Costs, Routes, Simulation, build, simulate
from trainsys.schedule.picture import Panel, draw_panels


@pytest.fixture(scope="module")
def figures() -> list[object]:
    from matplotlib.figure import Figure

    kept: list[object] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    for name, vp, microbatches in (("zbv", 2, 8), ("zb1p", 1, 64)):
        run = simulated(name, vp, microbatches)
        memory = {lane: [(0.0, 1.0), (run.step_s, lane + 2.0)] for lane in range(len(run.lanes))}
        draw_panels([Panel(name, run.events, memory)], Path("unused.png"), name)
    patch.undo()
    return kept


def simulated(name: str, vp: int, microbatches: int) -> Simulation:
    lanes = 4 if vp == 2 else 16
    cost = [0.01 / vp] * lanes * vp
    return simulate(
        build(name, Routes.balanced(microbatches, [1] * lanes, vp, vp == 2), vp), Costs(cost, [2 * c for c in cost])
    )


def test_boxes_shades_and_numbers(figures: list[object]) -> None:
    small, large = figures
    boxes, numbers = small.axes[0].collections  # type: ignore[attr-defined]
    assert len(boxes.get_paths()) == 4 * 2 * 3 * 8
    assert len({tuple(colour) for colour in boxes.get_facecolors()}) == 6  # F, I and W, each of two runs
    assert len(numbers.get_offsets()) == 4 * 2 * 3 * 8
    assert len(large.axes[0].collections[0].get_paths()) == 16 * 3 * 64  # type: ignore[attr-defined]
    assert large.get_size_inches()[0] <= 27  # type: ignore[attr-defined]


def test_memory_is_on_the_time_axis_of_the_lanes(figures: list[object]) -> None:
    rows, memory = figures[0].axes  # type: ignore[attr-defined]
    assert rows.get_xlim() == memory.get_xlim()
    assert [line.get_ydata()[-1] for line in memory.lines] == [2.0, 3.0, 4.0, 5.0]
    assert memory.xaxis.get_label_text() == "time (ms)"
