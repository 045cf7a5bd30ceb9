"""The best layouts as bars: where each step goes, and each memory against the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from typing import Any

from trainsys.planner.parts import step_parts
from trainsys.planner.plan import Plan

_STEP = ("#4c78a8", "#f58518", "#eeca3b", "#ff9da6", "#e45756", "#b279a2", "#bab0ac", "#72b7b2", "#54a24b")
_MEMORY = ("#1b7837", "#5aae61", "#a6dba0", "#d9f0d3", "#9970ab", "#c2a5cf", "#8c510a", "#dfc27d", "#999999")


def draw(plans: Sequence[Plan], title: str, form: str = "png", sized: bool = False) -> bytes:
    """A picture in `form` (png, pdf, svg): two panels with one bar per layout, the best on top.

    Left the step by its parts, right the fullest rank's memory by its parts, against the limit. Where sizes were
    searched (`sized`), layouts are named with their microbatch size.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.0 + 0.55 * len(plans)), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    scale, unit = (1.0, "s") if plans[0].step_s >= 1 else (1e3, "ms")
    steps = [{name: max(0.0, s) * scale for name, s in step_parts(plan).items()} for plan in plans]
    _stack(left, steps, f"step time ({unit})", _STEP)
    _stack(right, [dataclasses.asdict(plan.memory) for plan in plans], "peak memory of a rank (GiB)", _MEMORY)
    limit, slowest = plans[0].limit_gib, max(sum(step.values()) for step in steps)
    right.axvline(limit, color="black", linestyle="--", linewidth=1.2, label=f"limit {limit:g} GiB")
    right.set_xlim(0, 1.08 * max(limit, *(plan.peak_gib for plan in plans)))
    left.set_xlim(0, 1.12 * slowest)
    for place, (step, plan) in enumerate(zip(steps, plans, strict=True)):
        said = {"textcoords": "offset points", "va": "center", "fontsize": 9}
        left.annotate(f"{plan.step_s * scale:.3g}", (sum(step.values()), place), (4, 0), **said)
        box = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.0}
        inside = plan.peak_gib > limit / 4  # beside a long bar it would hide the limit
        offset, side = ((-4, 0), "right") if inside else ((4, 0), "left")
        right.annotate(f"{plan.peak_gib:.3g}", (plan.peak_gib, place), offset, ha=side, bbox=box, **said)
    left.set_yticks(range(len(plans)), [plan.name(sized) for plan in plans], fontsize=9)
    left.invert_yaxis()
    _legend(figure, left, "outside lower left")
    _legend(figure, right, "outside lower right")
    written = BytesIO()
    figure.savefig(written, format=form, dpi=110)
    return written.getvalue()


def _legend(figure: Any, axes: Any, where: str) -> None:
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, ncols=4, frameon=False, loc=where)


def _stack(axes: Any, bars: Sequence[Mapping[str, float]], what: str, colours: Sequence[str]) -> None:
    """Stacked bars, one colour per part; parts that no bar shows have no entry in the legend."""
    ends = [0.0] * len(bars)
    shown = {name for name in bars[0] if any(bar[name] > 0.002 * sum(bar.values()) for bar in bars)}
    for name, colour in zip(bars[0], cycle(colours), strict=False):
        if name not in shown:
            continue
        widths = [bar[name] for bar in bars]
        axes.barh(range(len(bars)), widths, left=ends, height=0.7, color=colour, label=name)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.set(xlabel=what)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
