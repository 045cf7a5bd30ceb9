"""`trainsys simulate schedule=…`: several schedules of one layout, in one table, one picture and one page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainsys.cli.simulate_view import panel, title
from trainsys.planner.alternatives import Alternative, alternatives, schedule_names
from trainsys.planner.stages import notation

if TYPE_CHECKING:
    from rich.console import Console

    from trainsys.config import RunConfig

_HEADINGS = ("schedule", "vp", "step (s)", "bubble", "peak activations", "peak (GiB)", "needs")
_LEAST_WIDTH = 122
_PAGE_IN, _ROWS_IN = 40.0, (0.11, 0.26)  # height of the comparison, and least and most of a lane in it


@dataclass(frozen=True)
class Compared:
    """Schedules that can run, the shortest step first, and why the others cannot."""

    config: RunConfig
    able: Sequence[Alternative]
    unable: dict[str, str]
    out: Path

    def show(self, console: Console, table: bool) -> None:
        """The table (if wanted), what cannot run, and the files."""
        from rich.table import Table

        rich = Table(title=_about(self.config), title_justify="left")
        for heading in _HEADINGS:
            rich.add_column(heading, justify="left" if heading in ("schedule", "needs") else "right")
        for row in rows(self.able):
            rich.add_row(*row)
        if table:
            console.width = max(console.width, _LEAST_WIDTH)  # what to set is not to be cut
            console.print(rich)
        for note in self.notes:
            console.print(note, markup=False)
        if self.able:
            console.print(
                f"{self.out}/schedules.html  everything on one page\n{self.out}/schedules.png   all on one time axis\n"
                f"{self.out}/timeline-*.png  one picture each",
                markup=False,
            )

    @property
    def notes(self) -> list[str]:
        limit = self.config.cluster.device.memory_gib
        over = [a.label for a in self.able if max(a.timeline.peak_gib) > limit]
        notes = [f"above cluster.device.memory_gib={limit:g}: {', '.join(over)}"] if over else []
        return notes + [f"cannot run {name}: {why}" for name, why in self.unable.items()]


def simulate_all(config: RunConfig, asked: str, out: Path, check_out: Callable[[], None]) -> Compared:
    """Compare the schedules that `asked` names, and write their pictures into `out`.

    Args:
        check_out: raises ValueError where `out` cannot be written; called before anything is.

    Raises:
        ValueError: for an unknown name, or if none of those named can run.
    """
    able, unable = alternatives(config, schedule_names(asked))
    if not able:
        raise ValueError(next(iter(unable.values())))
    check_out()
    compared = Compared(config, able, unable, out)
    _write(compared)
    return compared


def rows(able: Sequence[Alternative]) -> list[list[str]]:
    """The cells of the table."""
    return [
        [
            a.timeline.schedule.name,
            str(a.config.parallel.vp),
            f"{a.timeline.run.step_s:.4g}",
            f"{a.timeline.run.bubble:.1%}",
            f"{a.peak_microbatches:g}",
            f"{max(a.timeline.peak_gib):.3g}",
            a.needs,
        ]
        for a in able
    ]


def _write(compared: Compared) -> None:
    from trainsys.schedule.page import html_page
    from trainsys.schedule.picture import draw_panels

    out, able = compared.out, compared.able
    out.mkdir(parents=True, exist_ok=True)
    pictures = []
    panels = [
        panel(
            a.timeline, f"{a.label}, bubble {a.timeline.run.bubble:.1%}, {max(a.timeline.peak_gib):.3g} GiB", brief=True
        )
        for a in able
    ]
    lanes = sum(len({event.lane for event in each.events}) for each in panels)
    row_in = min(_ROWS_IN[1], max(_ROWS_IN[0], (_PAGE_IN - 0.42 * len(panels)) / lanes))
    draw_panels(panels, out / "schedules.png", _about(compared.config), row_in, apart=False)
    pictures.append(("All on one time axis", (out / "schedules.png").read_bytes()))
    for a in able:
        path = out / f"timeline-{Path(a.name).stem}-vp{a.config.parallel.vp}.png"
        draw_panels([panel(a.timeline, "predicted")], path, title(a.config, a.timeline))
        pictures.append((a.label, path.read_bytes()))
    about = "Forward and backward of one step as predicted, shortest first; activations in microbatches of a stage."
    page = html_page(_about(compared.config), about, _HEADINGS, rows(able), compared.notes, pictures)
    (out / "schedules.html").write_text(page)


def _about(config: RunConfig) -> str:
    """``Schedules of dp1·tp1·pp4, 8 microbatches``."""
    microbatches = config.batch.global_size // config.batch.microbatch_size
    return f"Schedules of {notation(config.parallel).split()[0]}, {microbatches} microbatches"
