"""How the views of a plan print numbers, labels and bars."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def grid() -> Table:
    """Label on the left, text on the right."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=9, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def bar(share: float, width: int) -> Text:
    """A bar of `width` cells, filled to `share`, in eighths of a cell; red when nearly full."""
    eighths = min(round(max(share, 0.0) * width * 8), width * 8)
    full, rest = divmod(max(eighths, 1), 8)
    filled = "█" * full + (_EIGHTHS[rest] if rest else "")
    style = "red" if share > 0.95 and width < 10 else "cyan"
    return Text(filled, style=style).append("·" * (width - len(filled)), style="dim")


def gib(value: float) -> str:
    """Three digits or so, without the unit."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def seconds(value: float) -> str:
    """In s, ms or µs."""
    if abs(value) >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.0f} µs"


def chance(probability: float) -> str:
    """In percent; what is all but certain is not called so."""
    return "<1%" if probability < 0.01 else ">99%" if probability > 0.99 else f"{probability:.0%}"


def change(ratio: float) -> str:
    """How much more or less than before, in percent: ``+12 %``."""
    return f"{100 * (ratio - 1):+.0f} %" if abs(ratio - 1) >= 0.005 else "same"
