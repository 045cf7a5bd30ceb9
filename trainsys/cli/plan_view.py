"""A plan on screen: what was asked, the winner, its rivals, where its memory goes, and what was ruled out."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainsys.cli.units import bar, chance, gib, grid, seconds
from trainsys.config import RunConfig
from trainsys.planner.hints import hints
from trainsys.planner.on_device import known_device
from trainsys.planner.plan import Plan, PlanReport
from trainsys.planner.risk import oom_probability

_RISKY, _SAFE = 0.1, 0.02  # of running out of memory: worth a word, and not
_WIDE = 96  # columns from which the ranking has room for bars
_REASONS = 8  # against layouts that are listed


def show(config: RunConfig, report: PlanReport, top: int, console: Console | None = None) -> None:
    """Print `report`. Colours only on a terminal; NO_COLOR and COLUMNS are respected (by rich)."""
    console = console or Console(highlight=False)
    best = report.plans[0]
    parts = [
        _header(config, report),
        _winner(best, report.any_microbatch),
        _ranking(report, top, console.width),
        _bars(best),
    ]
    parts += [part for part in (_rejected(report), _advice(config, report)) if part.row_count]
    for part in parts:
        console.print(Padding(part, (0, 0, 1, 1), expand=False))


def show_written(
    out: Path | None, exports: Sequence[tuple[str, Path, str]], picture: Path | None, console: Console | None = None
) -> None:
    """What to do with the files; long paths are not broken, as they are to be copied whole.

    Args:
        exports: target, file, and the layout where the target cannot express the best one.
    """
    console = console or Console(highlight=False)
    lines = [("train it", f"trainsys train {shlex.quote(str(out))}")] if out else []
    for target, path, other in exports:
        lines.append((target, f"{path}   ({other}, the best that it can express)" if other else str(path)))
    lines += [("picture", str(picture))] if picture else []
    for label, text in lines:
        console.print(Text.assemble((f" {label:<10} ", "dim"), (text, "bold")), soft_wrap=True)


def _header(config: RunConfig, report: PlanReport) -> Table:
    batch = config.batch
    microbatches = batch.global_size // batch.microbatch_size
    table = grid()
    table.add_row("cluster", report.cluster)
    known = known_device(config)
    reached = f"a step reaches {config.cluster.device.efficiency:.0%} of it"
    table.add_row("device", f"{report.device}; {'costed kernel by kernel' if known else reached}")
    table.add_row("model", report.model)
    table.add_row(
        "batch",
        f"{batch.global_size} sequence{'s'[: batch.global_size != 1]} × {batch.seq_len} tokens per step, "
        f"{microbatches} microbatch{'es'[: 2 * (microbatches != 1)]} of {batch.microbatch_size}",
    )
    fit = report.pruned + report.simulated
    table.add_row(
        "search",
        f"{report.legal} {'layouts are' if report.legal != 1 else 'layout is'} legal, {fit} of them fit, "
        f"{report.simulated} simulated, {report.search_s:.2g} s",
    )
    return table


def _winner(plan: Plan, sized: bool) -> Table:
    numbers = f"   {seconds(plan.step_s)} per step · {plan.tokens_per_s:,.0f} tokens/s · MFU {plan.mfu:.1%}"
    table = grid()
    table.add_row("best", Text.assemble((plan.name(sized), "bold green"), numbers))
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
    for name in ("OOM", "bubble", "comm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for place, plan in enumerate(report.plans[:top], start=1):
        cells = [bar(plan.peak_gib / limit, 8)] if wide else []
        table.add_row(
            str(place),
            Text(plan.name(report.any_microbatch), style="green" if place == 1 else ""),
            seconds(plan.step_s),
            f"{plan.tokens_per_s:,.0f}",
            f"{plan.mfu:.1%}",
            gib(plan.peak_gib),
            *cells,
            chance(oom_probability(plan.peak_gib, limit)),
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
    table = grid()
    for title, values, form in (("time", parts, seconds), ("memory", memory, lambda value: f"{gib(value)} GiB")):
        total = sum(values.values())
        for name, value in sorted(values.items(), key=lambda item: -item[1]):
            if value < total / 1000:
                continue
            filled = bar(value / total, 24).append(f" {form(value)}, {value / total:.0%}", style="default")
            table.add_row(title, Text(f"{name:<12}").append_text(filled))
            title = ""
    return table


def _rejected(report: PlanReport) -> Table:
    """How many layouts were ruled out, by reason."""
    table = grid()
    digits = len(str(max(report.rejected.values(), default=0)))
    for place, (reason, count) in enumerate(report.rejected.most_common(_REASONS)):
        table.add_row("" if place else "rejected", Text(f"{count:>{digits}}  {reason}"))
    rest = report.rejected.most_common()[_REASONS:]
    if rest:
        table.add_row("", Text(f"{sum(count for _, count in rest):>{digits}}  for {len(rest)} more reasons"))
    return table


def _advice(config: RunConfig, report: PlanReport) -> Table:
    """What deserves a second look: a winner that may not fit, the faster reduction, a size that wastes the device."""
    best, fast, table = report.plans[0], report.reduction_fast, grid()
    risk = oom_probability(best.peak_gib, best.limit_gib)
    if risk > _RISKY:
        safer = next((p for p in report.plans if oom_probability(p.peak_gib, p.limit_gib) <= _SAFE), None)
        said = f"{chance(risk)} that the best runs out of memory"
        if safer:
            said += f"; {safer.name(report.any_microbatch)}: {chance(oom_probability(safer.peak_gib, safer.limit_gib))}"
            said += f", {safer.step_s / best.step_s - 1:.1%} slower"
        table.add_row("risk", said)
    if fast:
        said = f"{seconds(fast.step_s)}, {best.step_s / fast.step_s:.1f} × as fast"
        table.add_row("note", f"parallel.reduction=fast (bits then depend on the layout): {said}")
    for hint in hints(config, best)[:1]:
        table.add_row("hint", f"{hint.knobs}: {hint.gain:+.0%} FLOP/s ({hint.because})")
    return table
