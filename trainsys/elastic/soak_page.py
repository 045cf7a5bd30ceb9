"""The status page of a soak: a table redrawn in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from trainsys.elastic.progress import Screen, clock

if TYPE_CHECKING:
    from trainsys.elastic.soak import Tally

_LINES = 8


class Page:
    """A screen that shows the tally above the newest lines.

    Args:
        console: a rich console; None shows nothing.
    """

    is_terminal = False  # to those who print here: lines, nothing that redraws itself

    def __init__(self, console: Screen | None, tally: Tally) -> None:
        self._console, self._tally = console, tally
        self._lines: deque[str] = deque(maxlen=_LINES)
        self._live: Any = None

    def __enter__(self) -> Page:
        if self._console is not None and self._console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=self._console, refresh_per_second=4)  # type: ignore[arg-type]
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()

    def print(self, *objects: Any, **options: Any) -> None:
        """One line."""
        line = " ".join(map(str, objects))
        self._lines.append(line)
        if self._live is not None:
            self._live.update(self._table())
        elif self._console is not None and not line.startswith("step "):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            if line.startswith("seed "):
                for name, text in rows(self._tally):
                    self._console.print(f"  {name:<12} {text}", markup=False, highlight=False, soft_wrap=True)

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(title="soak", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, text in rows(self._tally):
            bad = name in ("lost", "failed") and any(c in "123456789" for c in text)
            table.add_row(Text(name, style="dim"), Text(text, style="bold red" if bad else ""))
        table.add_row("", "")
        for line in self._lines:
            table.add_row("", Text(line, no_wrap=True, overflow="ellipsis", style="dim"))
        return table


def rows(tally: Tally) -> list[tuple[str, str]]:
    """The table, as (name, text)."""
    s = tally.summary()
    left = max(0.0, tally.until_s - s["elapsed_s"])
    by_kind = "  ".join(f"{kind} {n}" for kind, n in s["faults"].items())
    broken = [name for name, holds in s["invariants"].items() if not holds]
    held = f"{', '.join(broken)} violated" if broken else f"{', '.join(s['invariants'])} hold"
    return [
        ("elapsed", f"{clock(s['elapsed_s'])}, {clock(left)} left"),
        ("runs", f"{s['runs']} of {s['steps']} steps in all"),
        ("failed", str(s["failed"])),
        ("faults", f"{sum(s['faults'].values())}  {by_kind}"),
        ("lost", f"{s['steps_lost']} steps, {s['samples_lost']} samples, {s['samples_repeated']} repeated"),
        ("recovery", f"{s['worst_recover_s']:.2f} s at worst"),
        ("goodput", "-" if s["goodput"] is None else f"{s['goodput']:.1%}"),
        ("invariants", held if s["invariants"] else "-"),
    ]


def summary_lines(summary: dict[str, Any], run_dir: str) -> list[str]:
    """The last screen."""
    n, failed = summary["runs"], summary["failed"]
    lines = [f"{n} storm{'s'[: n != 1]} in {clock(summary['elapsed_s'])}, {failed} failed."]
    lines += [f"  seed {f['seed']}: {f['why']}" for f in summary["failures"]]
    return [*lines, f"The summary is {run_dir}/soak.json."]
