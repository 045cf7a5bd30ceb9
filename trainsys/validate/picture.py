"""Predicted against measured, as a scatter plot with one colour per set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainsys.validate.metrics import Prediction


def draw(sets: Mapping[str, Sequence[Prediction]], path: Path) -> None:
    """Two panels, step time and peak memory, both with lines at ±10 %."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    timed = {name: [(p.row.step_s, p.step_s) for p in rows if p.row.step_s] for name, rows in sets.items()}
    peaks = {name: [(p.row.peak_gib, p.peak_gib) for p in rows if p.row.peak_gib] for name, rows in sets.items()}
    _panel(left, timed, "step time (s)")
    _panel(right, peaks, "peak memory (GiB)")
    figure.savefig(path, dpi=110)


def _panel(axes: Any, sets: Mapping[str, Sequence[tuple[Any, float]]], what: str) -> None:
    values = [value for pairs in sets.values() for pair in pairs for value in pair]
    axes.set(xscale="log", yscale="log", xlabel=f"measured {what}", ylabel=f"predicted {what}", aspect="equal")
    axes.grid(alpha=0.25)
    if not values:
        return
    ends = (min(values) * 0.8, max(values) * 1.25)
    axes.plot(ends, ends, color="0.3", linewidth=1)
    axes.fill_between(ends, [0.9 * e for e in ends], [1.1 * e for e in ends], color="0.85", label="±10 %")
    colours = _colours()
    for i, (name, pairs) in enumerate(sets.items()):  # one colour for a set in both panels
        if not pairs:
            continue
        axes.scatter(*zip(*pairs, strict=True), s=22, alpha=0.8, color=colours(i % 20), label=name)
    axes.set(xlim=ends, ylim=ends)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _colours() -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"]
