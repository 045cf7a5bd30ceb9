"""The Chrome trace is well formed; the picture is a PNG with a panel per group."""

import json
from pathlib import Path

import pytest

from trainsys.schedule import Action, Costs, Event, Kind, Routes, build, simulate
from trainsys.schedule.picture import draw
from trainsys.schedule.timeline import chrome_trace


def events() -> tuple[Event, ...]:
    return simulate(build("1f1b", Routes.balanced(8, [1, 2, 1])), Costs([0.01] * 3, [0.02] * 3, send_s=0.015)).events


def test_chrome_trace_holds_every_event_once_and_nothing_overlaps_on_a_thread() -> None:
    rows = {"predicted": events(), "measured": events()[:10]}
    trace = json.loads(json.dumps(chrome_trace(rows)))["traceEvents"]
    slices = [e for e in trace if e["ph"] == "X"]
    for pid, group in enumerate(rows.values()):
        mine = [e for e in slices if e["pid"] == pid]
        assert sorted(e["name"] for e in mine) == sorted(str(e.action) for e in group)
        free: dict[int, float] = {}
        for e in sorted(mine, key=lambda e: e["ts"]):
            assert e["ts"] >= free.get(e["tid"], 0.0) - 1e-6
            free[e["tid"]] = e["ts"] + e["dur"]
    names = [e["args"]["name"] for e in trace if e["name"] == "process_name"]
    assert names == ["predicted", "measured"]
    first = next(e for e in slices if e["name"] == "0F0")
    assert (first["ts"], first["dur"]) == (0.0, pytest.approx(10_000))


def test_draw_writes_a_picture(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    draw({"predicted": events()}, one, "one")
    draw({"predicted": events(), "measured": events()}, two, "two")
    for path in (one, two):
        assert path.read_bytes().startswith(b"\x89PNG")
    height = [int.from_bytes(path.read_bytes()[20:24], "big") for path in (one, two)]
    assert height[1] > 1.5 * height[0]


@pytest.mark.parametrize(("slower", "shared"), [(2.0, True), (30.0, False)])
def test_panels_far_apart_have_a_time_scale_each(
    slower: float, shared: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from matplotlib.figure import Figure

    limits: list[float] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: limits.extend(a.get_xlim()[1] for a in self.axes))
    measured = [Event(e.lane, e.action, e.start_s * slower, e.end_s * slower) for e in events()]
    draw({"predicted": events(), "measured": measured}, tmp_path / "x.png", "x")
    assert limits[1] == pytest.approx(limits[0] * (1.0 if shared else slower))


def test_draw_without_compute_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no F, B, I or W"):
        draw({"measured": [Event(0, Action(0, Kind.SEND_F, 0), 0.0, 1.0)]}, tmp_path / "x.png", "x")
