"""``trainsys plan --explain`` on screen: the winner module by module, what its step depends on, sizes that waste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainsys.cli.units import bar, change, gib, grid, seconds
from trainsys.config import RunConfig
from trainsys.planner.hints import Hint, hints
from trainsys.planner.modules import Module, breakdown
from trainsys.planner.plan import PlanReport
from trainsys.planner.sensitivity import Case, sensitivity


@dataclass(frozen=True)
class Explanation:
    """Of the winner."""

    modules: tuple[Module, ...]
    sensitivity: tuple[Case, ...]
    hints: tuple[Hint, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain(config: RunConfig, report: PlanReport) -> Explanation:
    """All that ``--explain`` shows of the best of `report`."""
    best = report.plans[0]
    return Explanation(
        breakdown(config, best), sensitivity(config, report.plans, sized=report.any_microbatch), hints(config, best)
    )


def show_explanation(explanation: Explanation, console: Console | None = None) -> None:
    """Print it: modules, sensitivity, hints."""
    console = console or Console(highlight=False)
    cases = explanation.sensitivity
    for part in (_modules(explanation.modules), _sensitivity(cases), _levers(cases), _hints(explanation.hints)):
        console.print(Padding(part, (0, 0, 1, 1), expand=False))


def _modules(modules: Sequence[Module]) -> Table:
    table = _table("module", "step", "share", "", "GiB")
    table.columns[3].justify = "left"
    for row in modules:
        filled = bar(row.share, 16) if row.step_s > 0 else Text("")
        took = (seconds(row.step_s), f"{row.share:.1%}") if row.step_s else ("", "")
        table.add_row(row.title, *took, filled, gib(row.gib) if row.gib > 5e-4 else "")
    step, whole = sum(row.step_s for row in modules), sum(row.gib for row in modules)
    table.add_row("all", seconds(step), "100.0%", "", gib(whole), style="bold")
    table.caption, table.caption_justify = "step of the slowest stage, GiB of the fullest rank", "left"
    return table


def _sensitivity(cases: Sequence[Case]) -> Table:
    """One row per quantity; tokens/s of the same layout, and the layout that would win where it is another."""
    table = _table("tokens/s if", "halved", "doubled", "best then")
    table.columns[3].justify = "left"
    table.columns[3].overflow = "fold"
    for pair in zip(cases[::2], cases[1::2], strict=True):
        winners = [f"{_times(case)} {case.winner}" for case in pair if case.changes_winner]
        table.add_row(pair[0].what, *(_effect(case) for case in pair), "; ".join(winners) or "same layout")
    return table


def _levers(cases: Sequence[Case]) -> Table:
    """What of the machine bounds the step: where twice as much helps most."""
    table = grid()
    more = [(case.tokens_ratio, case.what) for case in cases if case.factor > 1 and case.tokens_ratio]
    machine = sorted(((ratio, what) for ratio, what in more if "band" in what or "rate" in what), reverse=True)
    table.add_row("bound by", ", ".join(f"{what} (twice: {change(ratio)})" for ratio, what in machine[:2]))
    return table


def _times(case: Case) -> str:
    return "halved:" if case.factor < 1 else "doubled:"


def _effect(case: Case) -> str:
    if case.tokens_ratio is None:
        return "illegal"
    if case.over_gib:
        return f"{gib(case.over_gib)} GiB over"
    return change(case.tokens_ratio)


def _hints(found: Sequence[Hint]) -> Table:
    table = grid()
    for place, hint in enumerate(found):
        said = f"{hint.knobs}: {hint.gain:+.1%} FLOP/s, {seconds(hint.step_s)} per step ({hint.because})"
        table.add_row("" if place else "hints", said)
    if not found:
        table.add_row("hints", "no size nearby that the device would do better with")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=name != "best then")
    return table
