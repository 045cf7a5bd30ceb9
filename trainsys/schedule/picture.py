"""A step as a picture: per lane its actions in time, blank where it waits, and below what each lane's ranks hold.

The field's colours: F blue, B green, and where the backward is split I cyan and W light green. A lane's later runs of
layers are paler than its first, with dark numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainsys.schedule.actions import Kind
from trainsys.schedule.simulate import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Sequence[tuple[float, float]]  # (seconds, GiB from then on)
_COLOURS = {
    Kind.F: "#3B6BC2",
    Kind.B: "#2B8F62",
    Kind.I: "#1F9DB8",
    Kind.W: "#7DB03F",
    Kind.R: "#8468B8",
    Kind.E: "#B5A642",
    Kind.S: "#C8587A",
    Kind.T: "#E08FA8",
    Kind.G: "#8C8136",
    Kind.OFFLOAD: "#C2762E",
    Kind.RELOAD: "#E0A458",
}
_LABELS = {
    Kind.F: "F  forward",
    Kind.B: "B  backward",
    Kind.I: "I  input gradient",
    Kind.W: "W  weight gradient",
    Kind.R: "R  recompute",
    Kind.E: "E  lookup",
    Kind.S: "S  logits",
    Kind.T: "T  their gradient",
    Kind.G: "G  of the lookup",
    Kind.OFFLOAD: "copy to the host",
    Kind.RELOAD: "copy back",
}
_COPIES = (Kind.OFFLOAD, Kind.RELOAD)
_BUBBLE = "#F1F1EF"
_PALE = 0.58  # share of white in the last of a lane's runs
_FONT_PT, _MIN_FONT_PT = 9.0, 4.5
_APART = 3.0  # panels whose steps differ by more get a time axis each
_ENOUGH = 0.5  # share of the boxes that numbers must fit into
_DIGIT_EM = 0.64  # width of a digit in the default font, in units of the font size
_WIDEST_IN = 24.0
_MEMORY_IN = 2.2  # height of the memory panel
_LEGEND_LANES = 8  # lines named in the memory panel


@dataclass(frozen=True)
class Panel:
    """One timeline of a picture.

    Attributes:
        title: what it is; the time of the step is added.
        events: compute is drawn, and copies to and from the host; transfers are not.
        memory: lane -> its curve; drawn in a panel of its own below, on the same time axis.
    """

    title: str
    events: Sequence[Event]
    memory: Mapping[int, Curve] | None = None

    @property
    def drawn(self) -> list[Event]:
        return [e for e in self.events if e.action.is_compute or e.action.kind in _COPIES]


def draw(groups: Mapping[str, Sequence[Event]], path: Path | str, title: str) -> None:
    """Write a PNG of events by group, such as "predicted" and "measured". Raises ValueError as `draw_panels`."""
    draw_panels([Panel(group, events) for group, events in groups.items()], path, title)


def draw_panels(panels: Sequence[Panel], path: Path | str, title: str, row_in: float = 0.3, apart: bool = True) -> None:
    """Write a PNG: the panels one below the other, in each a row per lane and a box per action with its microbatch.

    The panels share one time scale unless their steps differ so much that one of them could not be read on it. Numbers
    are left out where the boxes are too narrow for them. Panels without compute are left out.

    Args:
        row_in: height of a lane, inches.
        apart: panels may have time scales of their own.

    Raises:
        ValueError: if no panel has a compute event.
    """
    panels = [panel for panel in panels if any(e.action.is_compute for e in panel.events)]
    if not panels:
        raise ValueError("there is no F, B, I or W among the events to draw")
    page = _Page(panels, row_in, apart)
    for panel in panels:
        page.add(panel)
    page.finish(title).savefig(path, dpi=150)


class _Page:
    """Panels from the top down, all measures in inches: known beforehand, so that nothing is laid out twice."""

    def __init__(self, panels: Sequence[Panel], row_in: float, apart: bool) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.row_in = row_in
        steps = [_step_s(panel) for panel in panels]
        self.end_s, self.apart = max(steps), apart and max(steps) > _APART * min(steps)
        units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
        self.unit, self.scale = next((u, k) for u, k in units if self.end_s * k >= 1 or u == "µs")
        labels = [label for panel in panels for label in _labels(panel.events).values()]
        self.left, self.right = max(0.7, 0.35 + 0.078 * max(map(len, labels))), 0.3
        inner = min(_WIDEST_IN, max(8.5, *(_wanted_in(panel, self.end_s) for panel in panels)))
        self.width = self.left + inner + self.right
        heights = [self._height(panel) for panel in panels]
        self.height = 0.4 + sum(heights) + 0.72
        self.figure = Figure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        self.top = self.height - 0.4
        self.last: Axes | None = None
        self.kinds: dict[Kind, None] = {}

    def _height(self, panel: Panel) -> float:
        rows = self.row_in * len(_labels(panel.events)) + 0.42
        return rows + (_MEMORY_IN + 0.3 if panel.memory else 0.0)

    def _axes(self, height: float, **options: Any) -> Axes:
        inner = self.width - self.left - self.right
        bottom = self.top - height
        self.top = bottom
        box = (self.left / self.width, bottom / self.height, inner / self.width, height / self.height)
        return self.figure.add_axes(box, **options)

    def add(self, panel: Panel) -> None:
        """Its rows, then its memory."""
        labels = _labels(panel.events)
        own_s = _step_s(panel)
        self.top -= 0.32
        axis = self._axes(self.row_in * len(labels))
        axis.set_xlim(0, (own_s if self.apart else self.end_s) * self.scale)
        _rows(axis, panel.drawn, list(labels), self.scale)
        small = min(9.0, 0.8 * 72 * self.row_in)
        axis.set_yticks(range(len(labels)), list(labels.values()), fontsize=small)
        scaled = ", on a time scale of its own" if self.apart else ""
        axis.set_title(f"{panel.title}: {own_s * self.scale:.4g} {self.unit}{scaled}", loc="left", fontsize=10, pad=4)
        self.kinds |= dict.fromkeys(e.action.kind for e in panel.drawn)
        self.top -= 0.1
        self.last = axis
        if panel.memory:
            self.top -= 0.12
            below = self._axes(_MEMORY_IN, sharex=axis)
            _memory(below, panel.memory, labels, own_s, self.scale)
            self.top -= 0.18
            self.last = below

    def finish(self, title: str) -> Figure:
        from matplotlib.patches import Patch

        assert self.last is not None
        for axis in self.figure.axes:
            axis.tick_params(labelbottom=axis is self.last or self.apart)
        self.last.set_xlabel(f"time ({self.unit})", fontsize=9.5)
        self.figure.text(0.15 / self.width, 1 - 0.13 / self.height, title, fontsize=12, va="top", fontweight="bold")
        handles = [Patch(color=_COLOURS[kind], label=_LABELS[kind]) for kind in _COLOURS if kind in self.kinds]
        handles.append(Patch(facecolor=_BUBBLE, edgecolor="#BBBBBB", label="idle"))
        place = (self.left / self.width, 0.02 / self.height)
        self.figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=place, ncols=len(handles), frameon=False, fontsize=9,
            borderaxespad=0.1, handlelength=1.3, columnspacing=1.6,
        )  # fmt: skip
        return self.figure


def _rows(axis: Axes, events: Sequence[Event], lanes: list[int], scale: float) -> None:
    """One panel's boxes: first lane on top, bubbles blank; copies are a strip below their lane's boxes."""
    from matplotlib.collections import PolyCollection

    row, shades = {lane: place for place, lane in enumerate(lanes)}, _shades(events)
    bottom = 0.28 if any(e.action.kind in _COPIES for e in events) else 0.44
    boxes, colours = [], []
    for e in events:
        low, high = (bottom + 0.06, 0.48) if e.action.kind in _COPIES else (-0.44, bottom)
        y, start, end = row[e.lane], e.start_s * scale, e.end_s * scale
        boxes.append([(start, y + low), (end, y + low), (end, y + high), (start, y + high)])
        colours.append(_pale(_COLOURS[e.action.kind], shades[e.lane, e.action.stage]))
    per_unit = _points_per_unit(axis)
    widths = sorted((e.end_s - e.start_s) * scale * per_unit for e in events)
    line = min(0.6, 0.1 * widths[len(widths) // 2])
    axis.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=line))
    axis.set_ylim(len(lanes) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8.5)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_facecolor(_BUBBLE)
    middle = {lane: place + (bottom - 0.44) / 2 for lane, place in row.items()}
    _numbers(axis, [e for e in events if e.action.is_compute], middle, shades, scale)


def _numbers(
    axis: Axes,
    events: Sequence[Event],
    middle: Mapping[int, float],
    shades: Mapping[tuple[int, int], float],
    scale: float,
) -> None:
    """Microbatch numbers, in one size for the panel's readable boxes: outlines in one collection, as they are many."""
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import Affine2D

    per_unit = _points_per_unit(axis)
    fits = [_fit_pt(e, scale * per_unit) for e in events]
    tall = 0.6 * abs(axis.transData.transform((0, 1))[1] - axis.transData.transform((0, 0))[1]) * 72 / _dpi(axis)
    size = min(_FONT_PT, tall, max(_MIN_FONT_PT, sorted(fits)[len(fits) // 10]))
    shown = [e for e, fit in zip(events, fits, strict=True) if fit >= size]
    if size < _MIN_FONT_PT or len(shown) < _ENOUGH * len(events):
        return
    outlines = {text: _outline(text, size) for text in {_text(e) for e in shown}}
    glyphs = PathCollection(
        [outlines[_text(e)] for e in shown],
        offsets=[((e.start_s + e.end_s) / 2 * scale, middle[e.lane]) for e in shown],
        offset_transform=axis.transData,
        facecolors=["white" if shades[e.lane, e.action.stage] == 0 else "#12263F" for e in shown],
        linewidths=0,
    )
    glyphs.set_transform(Affine2D().scale(1 / 72) + axis.figure.dpi_scale_trans)
    axis.add_collection(glyphs, autolim=False)


def _memory(axis: Axes, curves: Mapping[int, Curve], labels: Mapping[int, str], end_s: float, scale: float) -> None:
    """What a rank of each lane holds over time, the first lane darkest."""
    from matplotlib import colormaps

    lanes = list(curves)
    named = set(lanes if len(lanes) <= _LEGEND_LANES else lanes[:: -(-len(lanes) // _LEGEND_LANES)])
    for place, lane in enumerate(lanes):
        colour = colormaps["viridis"](0.92 * place / max(1, len(lanes) - 1))
        last = dict(curves[lane])  # of several changes at one instant
        seconds, gib = [s * scale for s in (*last, end_s)], [*last.values(), curves[lane][-1][1]]
        label = labels.get(lane, f"lane {lane}") if lane in named else None
        axis.step(seconds, gib, where="post", color=colour, linewidth=1.3, label=label)
    axis.set_ylabel("GiB per rank", fontsize=9)
    axis.set_ylim(0, 1.12 * max(g for curve in curves.values() for _, g in curve))
    axis.tick_params(labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.legend(frameon=False, fontsize=8, ncols=len(named), loc="lower right", handlelength=1.4, columnspacing=1.2)


def _shades(events: Sequence[Event]) -> dict[tuple[int, int], float]:
    """(lane, stage) -> share of white: 0 for the first of a lane's runs, more for each later one."""
    stages: dict[int, set[int]] = {}
    for event in events:
        stages.setdefault(event.lane, set()).add(event.action.stage)
    return {
        (lane, stage): _PALE * place / max(1, len(own) - 1) for lane, own in stages.items()
        for place, stage in enumerate(sorted(own))
    }  # fmt: skip


def _pale(colour: str, white: float) -> tuple[float, ...]:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(part + (1 - part) * white for part in parts)


def _labels(events: Sequence[Event]) -> dict[int, str]:
    """Lane -> "stage 1", or "stage 1, lane 3" where a stage has several lanes."""
    stages: dict[int, set[int]] = {}
    for event in events:
        stages.setdefault(event.lane, set()).add(event.action.stage)
    lanes_of: dict[int, int] = {}
    for own in stages.values():
        for stage in own:
            lanes_of[stage] = lanes_of.get(stage, 0) + 1
    labels = {}
    for lane, own in sorted(stages.items()):
        name = f"stage{'s'[: len(own) != 1]} {', '.join(map(str, sorted(own)))}"
        labels[lane] = f"{name}  lane {lane}" if max(lanes_of[stage] for stage in own) > 1 else name
    return labels


def _outline(text: str, size: float) -> Any:
    """The outline of `text`, `size` points high, around its middle."""
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), text, size=size)
    box = path.get_extents()
    return Outline(path.vertices - [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2], path.codes)


def _fit_pt(event: Event, points_per_s: float) -> float:
    """The font size at which its number fits into the event's box."""
    return 0.86 * (event.end_s - event.start_s) * points_per_s / (_DIGIT_EM * len(_text(event)))


def _wanted_in(panel: Panel, end_s: float) -> float:
    """Inches of `end_s` seconds at which the numbers of most of a panel's boxes can be read."""
    fits = sorted(_fit_pt(e, 72.0 / end_s) for e in panel.events if e.action.is_compute)
    return 1.05 * _MIN_FONT_PT / max(fits[len(fits) // 10], 1e-9)


def _text(event: Event) -> str:
    return str(event.action.microbatch)


def _points_per_unit(axis: Axes) -> float:
    """Points of the page per unit of the time axis."""
    return axis.get_window_extent().width * 72 / _dpi(axis) / (axis.get_xlim()[1] - axis.get_xlim()[0])


def _dpi(axis: Axes) -> float:
    return float(axis.figure.dpi)


def _step_s(panel: Panel) -> float:
    return max(e.end_s for e in panel.events if e.action.is_compute)
