"""Pictures of a step: a Chrome (Perfetto) trace and a PNG, from predicted or measured events alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainsys.schedule.actions import Kind
from trainsys.schedule.simulate import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {
    Kind.F: "#4C78C8", Kind.B: "#5BA55B", Kind.I: "#3FA7A0", Kind.W: "#C9A227", Kind.R: "#8D7CC3",
    Kind.E: "#D98A4B", Kind.S: "#C8587A", Kind.T: "#E08FA8", Kind.G: "#A9713D",
}  # fmt: skip
_CHROME = {  # names of the trace viewer's own palette
    Kind.F: "thread_state_running",
    Kind.B: "good",
    Kind.I: "rail_response",
    Kind.W: "bad",
    Kind.R: "thread_state_runnable",
    Kind.E: "rail_load",
    Kind.S: "rail_animation",
    Kind.T: "terrible",
    Kind.G: "rail_idle",
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
}
_FONT_PT, _MIN_FONT_PT = 9.0, 5.0
_APART = 3.0  # panels whose steps differ by more get a time axis each
_GLYPH_EM = 0.62  # width of a digit in the default font, in units of the font size


def chrome_trace(rows: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    """The Trace Event Format (JSON object form) that chrome://tracing and ui.perfetto.dev open.

    Args:
        rows: events by group, such as "predicted" and "measured"; each group becomes a process, each lane a thread.
            A transfer overlaps its lane's compute, so it stands on a thread of its own below it.

    Returns:
        A dict for ``json.dump``; times in microseconds.
    """
    trace: list[dict[str, Any]] = []
    for pid, (group, events) in enumerate(rows.items()):
        trace.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": group}})
        trace.append({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}})
        for tid, (label, track) in enumerate(_tracks(events)):
            trace.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": label}})
            trace.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
            trace += [_slice(pid, tid, event) for event in track]
    return {"traceEvents": trace, "displayTimeUnit": "ms"}


def draw(groups: Mapping[str, Sequence[Event]], path: Path | str, title: str) -> None:
    """Write a PNG: one panel per group, one row per lane, a box per compute with its microbatch.

    The panels share one time scale unless their steps differ so much that one of them could not be read on it. Blank
    is bubble. Transfers are not drawn. Microbatch numbers are left out where the boxes are too narrow for them.

    Raises:
        ValueError: if no group has a compute event.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    compute = {group: [e for e in events if e.action.is_compute] for group, events in groups.items()}
    compute = {group: events for group, events in compute.items() if events}
    if not compute:
        raise ValueError("there is no F, B, I or W among the events to draw")
    lanes = {group: sorted({e.lane for e in events}) for group, events in compute.items()}
    rows = [len(lanes[group]) for group in compute]
    step_s = [max(e.end_s for e in events) for events in compute.values()]
    end_s, apart = max(step_s), max(step_s) > _APART * min(step_s)
    unit, scale = next((u, s) for u, s in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)) if end_s * s >= 1 or u == "µs")

    busiest = max(len(events) / len(lanes[group]) for group, events in compute.items())
    width = min(26.0, max(9.0, 2.0 + 0.38 * busiest))
    height = 1.25 + sum(0.34 * n + 0.42 for n in rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(compute), 1, sharex=not apart, squeeze=False, height_ratios=rows)[:, 0]
    for axis, (group, events), own_s in zip(axes, compute.items(), step_s, strict=True):
        axis.set_xlim(0, (own_s if apart else end_s) * scale)
        _panel(axis, events, lanes[group], scale)
        scaled = ", on a time scale of its own" if apart else ""
        axis.set_title(f"{group}: {own_s * scale:.4g} {unit}{scaled}", loc="left", fontsize=10)
    axes[-1].set_xlabel(f"time ({unit})")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    _legend(figure, {e.action.kind for events in compute.values() for e in events})
    figure.canvas.draw()  # the layout is known only now, and with it the boxes' widths
    for axis, events in zip(axes, compute.values(), strict=True):
        _number(axis, events, sorted({e.lane for e in events}), scale)
    figure.savefig(path, dpi=150)


def _panel(axis: Axes, events: Sequence[Event], lanes: list[int], scale: float) -> None:
    """One group's boxes: first lane on top, bubbles blank."""
    for row, lane in enumerate(lanes):
        mine = [e for e in events if e.lane == lane]
        spans = [(e.start_s * scale, (e.end_s - e.start_s) * scale) for e in mine]
        colours = [_COLOURS[e.action.kind] for e in mine]
        axis.broken_barh(spans, (row - 0.42, 0.84), facecolors=colours, edgecolors="white", linewidth=0.6)
    axis.set_ylim(len(lanes) - 0.5, -0.5)
    axis.set_yticks(range(len(lanes)), [_label(events, lane) for lane in lanes], fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_facecolor("#F3F3F3")


def _number(axis: Axes, events: Sequence[Event], lanes: list[int], scale: float) -> None:
    """Microbatch numbers, in one size for the panel's readable boxes."""
    points = axis.get_window_extent().width * 72 / axis.figure.dpi
    per_second = points / (axis.get_xlim()[1] / scale)
    rows = {lane: row for row, lane in enumerate(lanes)}
    fits = [0.9 * (e.end_s - e.start_s) * per_second / (_GLYPH_EM * len(str(e.action.microbatch))) for e in events]
    size = min(_FONT_PT, max(_MIN_FONT_PT, sorted(fits)[len(fits) // 10]))
    for event, fit in zip(events, fits, strict=True):
        if fit >= 0.95 * size:
            middle = (event.start_s + event.end_s) / 2 * scale
            text = str(event.action.microbatch)
            axis.text(middle, rows[event.lane], text, ha="center", va="center_baseline", fontsize=size, color="white")


def _legend(figure: Any, kinds: set[Kind]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_COLOURS[kind], label=_LABELS[kind]) for kind in _COLOURS if kind in kinds]
    handles.append(Patch(facecolor="#F3F3F3", edgecolor="#BBBBBB", label="bubble"))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9)


def _label(events: Sequence[Event], lane: int) -> str:
    """ "stage 1", or "stage 1, lane 3" where a stage has several lanes or a lane several stages."""
    stages = sorted({e.action.stage for e in events if e.lane == lane})
    alone = len(stages) == 1 and len({e.lane for e in events if e.action.stage == stages[0]}) == 1
    name = f"stage {'+'.join(map(str, stages))}"
    return name if alone else f"{name}, lane {lane}"


def _tracks(events: Sequence[Event]) -> list[tuple[str, list[Event]]]:
    """Threads in which no two events overlap: per lane its compute, then as many transfer threads as it needs."""
    tracks: list[tuple[str, list[Event]]] = []
    ordered = sorted(events, key=lambda e: (e.start_s, e.end_s))
    for lane in sorted({e.lane for e in events}):
        for compute, name in ((True, f"lane {lane}"), (False, f"lane {lane} transfers")):
            lines: list[list[Event]] = []
            for event in (e for e in ordered if e.lane == lane and e.action.is_compute == compute):
                for line in lines:
                    if line[-1].end_s <= event.start_s:
                        line.append(event)
                        break
                else:
                    lines.append([event])
            tracks += [(name, line) for line in lines]
    return tracks


def _slice(pid: int, tid: int, event: Event) -> dict[str, Any]:
    action = event.action
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": str(action),
        "cat": "compute" if action.is_compute else "transfer",
        "ts": event.start_s * 1e6,
        "dur": (event.end_s - event.start_s) * 1e6,
        "cname": _CHROME.get(action.kind, "generic_work"),
        "args": {"stage": action.stage, "kind": action.kind.value, "microbatch": action.microbatch},
    }
