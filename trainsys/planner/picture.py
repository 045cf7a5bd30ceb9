"""The best layouts as bars: where each step goes, and each memory against the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from trainsys.planner.parts import step_parts
from trainsys.planner.plan import Plan

_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#eeca3b", "#9d755d", "#bab0ac")


def draw(plans: Sequence[Plan], title: str, form: str = "png") -> bytes:
    """A picture in `form` (png, pdf, svg): two panels with one bar per layout, the best on top.

    Left the step by its parts, right the fullest rank's memory by its parts, against the limit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.0 + 0.55 * len(plans)), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    scale, unit = (1.0, "s") if plans[0].step_s >= 1 else (1e3, "ms")
    steps = [{name: max(0.0, s) * scale for name, s in step_parts(plan).items()} for plan in plans]
    _stack(left, steps, f"step time ({unit})")
    _stack(right, [dataclasses.asdict(plan.memory) for plan in plans], "peak memory of a rank (GiB)")
    limit = plans[0].limit_gib
    right.axvline(limit, color="black", linestyle="--", linewidth=1.2, label=f"limit {limit:g} GiB")
    right.set_xlim(0, 1.05 * max(limit, *(plan.peak_gib for plan in plans)))
    for axes, of in ((left, [sum(step.values()) for step in steps]), (right, [plan.peak_gib for plan in plans])):
        for place, value in enumerate(of):
            axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        axes.legend(
            fontsize=8, ncols=4, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22 - 0.6 / len(plans))
        )
    left.set_xlim(0, 1.12 * max(sum(step.values()) for step in steps))
    left.set_yticks(range(len(plans)), [plan.layout for plan in plans], fontsize=9)
    left.invert_yaxis()
    written = BytesIO()
    figure.savefig(written, format=form, dpi=110)
    return written.getvalue()


def _stack(axes: Any, bars: Sequence[Mapping[str, float]], what: str) -> None:
    """Stacked bars, one colour per part; parts that no bar shows have no entry in the legend."""
    ends = [0.0] * len(bars)
    shown = [name for name in bars[0] if any(bar[name] > 0.002 * sum(bar.values()) for bar in bars)]
    for name, colour in zip(shown, _COLOURS, strict=False):
        widths = [bar[name] for bar in bars]
        axes.barh(range(len(bars)), widths, left=ends, height=0.7, color=colour, label=name)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.set(xlabel=what)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
