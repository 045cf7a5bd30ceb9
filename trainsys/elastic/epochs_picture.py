"""The timeline of epochs: who worked under which layout when, and what befell whom."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from trainsys.elastic.check.record import Attempt, Line, read
from trainsys.elastic.faults import MANAGER
from trainsys.elastic.faults.notes import read_notes
from trainsys.elastic.goodput import ACTIVITIES, segments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# No colour means two things: layouts are of middle strength, activities pale or dark, marks strong.
_LAYOUTS = ("#5B8DB8", "#F0A860", "#8CB369", "#A98BC0", "#E0C45C", "#5FB3B3", "#C58F86", "#9AA5B1")
_FAULTS = {  # marker, colour
    "kill": ("X", "#C0392B"), "stop": ("s", "#C0392B"), "wake": ("D", "#7D3C98"), "drain": ("v", "#B7950B"),
    "cut": ("P", "#1B1B1B"), "oneway": ("p", "#1B1B1B"), "slow": ("h", "#5D6D7E"), "flip": ("*", "#D35400"),
    "full": ("o", "#5D6D7E"),
}  # fmt: skip
_ACTIVITIES = {
    "useful": "#CFE3D2", "redone": "#F4C6C0", "detection": "#E5399A", "change": "#1F6F6B", "checkpoint": "#8C6D46",
    "waiting": "#E8EAED",
}  # fmt: skip
_MANAGER = "#111111"
_ROW, _MOST = 0.2, 13.0  # inches: of a rank, and of all


def draw_epochs(run_dir: Path | str, path: Path) -> None:
    """Write the picture of a run's newest attempt. Raises ValueError without a history."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    attempt = read(run_dir).attempts[-1]
    ranks = sorted({rank for line in attempt.switched.values() for rank in line["ranks"]} | attempt.ranks.keys())
    row = {rank: i for i, rank in enumerate(ranks)}
    height = min(_MOST, max(2.2, _ROW * len(ranks)))
    figure = Figure(figsize=(12, height + 1.9), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=[height, 0.45])
    axes = figure.add_subplot(grid[0])
    _bars(axes, attempt, row)
    _managers(axes, attempt, Path(run_dir))
    _faults(axes, attempt, row)
    step = max(1, len(ranks) // 40)
    axes.set_yticks(range(0, len(ranks), step), [str(rank) for rank in ranks[::step]], fontsize=8)
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.set_ylabel("rank")
    axes.set_title(_title(attempt, len(_lost_managers(attempt, Path(run_dir)))), loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.spines["bottom"].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    marks = {*_FAULTS, "join", "manager lost"}
    order = sorted(range(len(labels)), key=lambda i: (labels[i] in marks, i))
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    axes.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8, markerscale=0.9
    )
    strip = figure.add_subplot(grid[1], sharex=axes)
    _strip(strip, attempt, Path(run_dir))
    figure.savefig(path, dpi=150)


def _title(attempt: Attempt, managers: int) -> str:
    seconds = attempt.manager[-1]["t_s"] - attempt.start["t_s"]
    told = [_count(len(attempt.told("committed")), "step")]
    told += [f"{_count(n, what)} lost" for n, what in ((len(attempt.lost), "rank"), (managers, "manager")) if n]
    worked = {rank for line in attempt.switched.values() for rank in line["ranks"]}
    came = len({line["rank"] for line in _came(attempt)} & worked)
    told += [f"{_count(came, 'rank')} joined"] if came else []
    return f"{_count(len(attempt.switched), 'epoch')} in {seconds:.0f} s: {', '.join(told)}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _came(attempt: Attempt) -> list[Line]:
    """Arrivals after the first layout stood: who starts with the run does not come."""
    first = min((line["t_s"] for line in attempt.switched.values()), default=attempt.start["t_s"])
    return [line for line in attempt.told("joined") if line["t_s"] > first]


def _lost_managers(attempt: Attempt, run_dir: Path) -> list[float]:
    """When each manager was lost: by the note of its fault, else when it last wrote a line."""
    notes = [note["time"] for note in read_notes(run_dir / "faults") if note["rank"] == MANAGER]
    found, since = list[float](), attempt.start["t_s"]
    for before, line in pairwise(attempt.manager):
        if line.event == "took_over":
            found += [t for t in notes if since < t < line["t_s"]] or [before["t_s"]]
            since = line["t_s"]
    return found


def _bars(axes: Axes, attempt: Attempt, row: dict[int, int]) -> None:
    """One bar per rank and epoch, in the colour of the layout."""
    began, colours = attempt.start["t_s"], dict[str, str]()
    stands: tuple[float, int] | None = None
    for line in attempt.manager:
        if stands is not None and line.event in ("called_off", "ended"):
            name = str(attempt.layout(stands[1]))
            fresh = name not in colours
            colour = colours.setdefault(name, _LAYOUTS[len(colours) % len(_LAYOUTS)])
            ranks = attempt.switched[stands[1]]["ranks"]
            axes.barh(
                [row[r] for r in ranks], line["t_s"] - stands[0], left=stands[0] - began, height=0.72, color=colour,
                label=name if fresh else None, linewidth=0,
            )  # fmt: skip
            stands = None
        if line.event == "switched":
            stands = line["t_s"], line["epoch"]


def _managers(axes: Axes, attempt: Attempt, run_dir: Path) -> None:
    """A line across all rows where a manager was lost."""
    for i, t in enumerate(_lost_managers(attempt, run_dir)):
        axes.axvline(
            t - attempt.start["t_s"], color=_MANAGER, linewidth=1.6, linestyle=(0, (3, 1.5)), zorder=2.5,
            label=None if i else "manager lost",
        )  # fmt: skip


def _faults(axes: Axes, attempt: Attempt, row: dict[int, int]) -> None:
    """Marks where each fault struck and where each fresh rank arrived."""
    began, shown = attempt.start["t_s"], set[str]()
    everywhere = set[int]()
    for rank, line in sorted(attempt.of_ranks("struck"), key=lambda found: found[0]):
        if line["kind"] == "full" and line["step"] in everywhere:
            continue  # of all ranks alike: shown at the first
        everywhere |= {line["step"]} if line["kind"] == "full" else set()
        marker, colour = _FAULTS.get(line["kind"], ("x", "#1B1B1B"))
        axes.plot(
            line["t_s"] - began, row[rank], marker, color=colour, markersize=7.5, markeredgecolor="white",
            markeredgewidth=0.7, label=None if line["kind"] in shown else line["kind"], zorder=3, linestyle="none",
        )  # fmt: skip
        shown.add(line["kind"])
    for line in _came(attempt):
        if line["rank"] in row:
            axes.plot(
                line["t_s"] - began, row[line["rank"]], ">", color="#2E8B57", markersize=5.5, zorder=3,
                markeredgecolor="white", markeredgewidth=0.7, label=None if "join" in shown else "join",
                linestyle="none",
            )  # fmt: skip
            shown.add("join")


def _strip(axes: Axes, attempt: Attempt, run_dir: Path) -> None:
    """What the whole did meanwhile."""
    began, totals = attempt.start["t_s"], dict.fromkeys(ACTIVITIES, 0.0)
    pieces: dict[str, list[tuple[float, float]]] = {name: [] for name in ACTIVITIES}
    for segment in segments(attempt, run_dir):
        pieces[segment.activity].append((segment.start - began, segment.end - segment.start))
        totals[segment.activity] += segment.end - segment.start
    whole = sum(totals.values()) or 1.0
    for name, spans in pieces.items():
        axes.broken_barh(spans, (0, 1), color=_ACTIVITIES[name], label=f"{name} {totals[name] / whole:.1%}", lw=0)
    axes.set_yticks([])
    axes.set_xlabel("time (s)")
    axes.margins(x=0.01)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.9), ncol=len(ACTIVITIES), frameon=False, fontsize=8,
        handlelength=1.2, columnspacing=1.4,
    )  # fmt: skip
