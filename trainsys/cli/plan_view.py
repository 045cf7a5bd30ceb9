"""A plan on screen: what was asked, the winner, its rivals, where its memory goes, and what was ruled out."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainsys.config import RunConfig
from trainsys.planner.on_device import known_device
from trainsys.planner.plan import Plan, PlanReport

_WIDE = 96  # columns from which the ranking has room for bars
_REASONS = 8  # against layouts that are listed
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(config: RunConfig, report: PlanReport, top: int, out: Path, console: Console | None = None) -> None:
    """Print `report`. Colours only on a terminal; NO_COLOR and COLUMNS are respected (by rich)."""
    console = console or Console(highlight=False)
    best = report.plans[0]
    parts = [_header(config, report), _winner(best), _ranking(report, top, console.width), _bars(best)]
    if report.rejected:
        parts.append(_rejected(report))
    for part in parts:
        console.print(Padding(part, (0, 0, 1, 1), expand=False))
    command = f"trainsys train {shlex.quote(str(out))}"
    console.print(Text.assemble((" train it   ", "dim"), (command, "bold")), soft_wrap=True)  # to be copied whole


def _header(config: RunConfig, report: PlanReport) -> Table:
    batch = config.batch
    microbatches = batch.global_size // batch.microbatch_size
    table = _grid()
    table.add_row("cluster", report.cluster)
    known = known_device(config)
    reached = f"a step reaches {config.cluster.device.efficiency:.0%} of it"
    table.add_row("device", f"{report.device}; {'costed kernel by kernel' if known else reached}")
    table.add_row("model", report.model)
    table.add_row(
        "batch",
        f"{batch.global_size} sequences × {batch.seq_len} tokens per step, "
        f"{microbatches} microbatch{'es'[: 2 * (microbatches != 1)]} of {batch.microbatch_size}",
    )
    fit = report.pruned + report.simulated
    table.add_row(
        "search",
        f"{report.legal} layouts are legal, {fit} of them fit, {report.simulated} simulated, {report.search_s:.2g} s",
    )
    return table


def _winner(plan: Plan) -> Table:
    numbers = f"   {_step(plan.step_s)} per step · {plan.tokens_per_s:,.0f} tokens/s · MFU {plan.mfu:.1%}"
    table = _grid()
    table.add_row("best", Text.assemble((plan.layout, "bold green"), numbers))
    return table


def _ranking(report: PlanReport, top: int, width: int) -> Table:
    """The `top` layouts, one per row; the bar fills up to the device's memory."""
    wide, limit = width >= _WIDE, report.plans[0].limit_gib
    table = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="dim")
    table.add_column("", justify="right", style="dim", no_wrap=True)
    table.add_column("layout", overflow="fold")
    for name in ("step", "tokens/s", "MFU"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column(f"GiB of {limit:g}", justify="right", no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True)
    for name in ("bubble", "comm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    several = len({plan.microbatch_size for plan in report.plans}) > 1
    for place, plan in enumerate(report.plans[:top], start=1):
        bar = [_bar(plan.peak_gib / limit, 8)] if wide else []
        table.add_row(
            str(place),
            Text(plan.layout + (f" mb{plan.microbatch_size}" if several else ""), style="green" if place == 1 else ""),
            _step(plan.step_s),
            f"{plan.tokens_per_s:,.0f}",
            f"{plan.mfu:.1%}",
            _gib(plan.peak_gib),
            *bar,
            f"{plan.bubble:.0%}",
            f"{plan.exposed_comm:.0%}",
            plan.bound_by,
        )
    return table


def _bars(plan: Plan) -> Table:
    """Where the winner's step goes, and its memory on the rank that needs most."""
    parts = {
        "compute": plan.compute_s,
        "tp": plan.tp_s,
        "cp": plan.cp_s,
        "ep": plan.ep_s,
        "dp": plan.dp_s,
        "offload": plan.offload_s,
        "update": plan.update_s,
        "waiting": plan.waiting_s,
    }
    memory = dataclasses.asdict(plan.memory)
    table = _grid()
    for title, values, form in (("time", parts, _step), ("memory", memory, lambda gib: f"{_gib(gib)} GiB")):
        total = sum(values.values())
        for name, value in sorted(values.items(), key=lambda item: -item[1]):
            if value < total / 1000:
                continue
            bar = _bar(value / total, 24).append(f" {form(value)}, {value / total:.0%}", style="default")
            table.add_row(title, Text(f"{name:<12}").append_text(bar))
            title = ""
    return table


def _rejected(report: PlanReport) -> Table:
    """How many layouts were ruled out, by reason."""
    table = _grid()
    digits = len(str(max(report.rejected.values())))
    for place, (reason, count) in enumerate(report.rejected.most_common(_REASONS)):
        table.add_row("" if place else "rejected", Text(f"{count:>{digits}}  {reason}"))
    rest = report.rejected.most_common()[_REASONS:]
    if rest:
        table.add_row("", Text(f"{sum(count for _, count in rest):>{digits}}  for {len(rest)} more reasons"))
    return table


def _grid() -> Table:
    """Label on the left, text on the right."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=9, no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _bar(share: float, width: int) -> Text:
    """A bar of `width` cells, filled to `share`, in eighths of a cell; red when nearly full."""
    eighths = min(round(max(share, 0.0) * width * 8), width * 8)
    full, rest = divmod(max(eighths, 1), 8)
    filled = "█" * full + (_EIGHTHS[rest] if rest else "")
    style = "red" if share > 0.95 and width < 10 else "cyan"
    return Text(filled, style=style).append("·" * (width - len(filled)), style="dim")


def _gib(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _step(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"
