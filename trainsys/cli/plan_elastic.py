"""``trainsys plan --elastic``: what follows the best plans when nodes fail or come, and which of them earns most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from trainsys.config import RunConfig
from trainsys.planner.goodput import DEPTH, Outlook, Successor, by_goodput
from trainsys.planner.plan import Plan, PlanReport

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLANS = 3  # that are looked at, each the fastest of its grid: those of one grid have much the same successors
KEPT = 32  # of the search, to find them among
_RARE = 0.01  # share of the time: more is worth a word

Views = Sequence[tuple[Plan, Outlook]]


def elastic(config: RunConfig, report: PlanReport, depth: int | None) -> Views:
    """The best plans of different grids with what follows each of them, the one to write first."""
    grids: dict[tuple[int, ...], Plan] = {}
    for plan in report.plans:
        p = plan.parallel
        grids.setdefault((p.dp, p.cp, p.tp, p.pp, p.ep), plan)
    return by_goodput(config, list(grids.values())[:PLANS], depth or DEPTH)


def elastic_json(views: Views) -> dict[str, Any]:
    """The plan that is written, and each plan with what follows it."""
    plans = [
        {"tokens_per_s": plan.tokens_per_s, "microbatch_size": plan.microbatch_size, **asdict(look)}
        | {"layout": plan.layout}
        for plan, look in views
    ]
    return {"written": views[0][0].layout, "plans": plans}


def show_elastic(
    config: RunConfig,
    fastest: Plan,
    views: Views,
    written: bool = True,
    console: Console | None = None,
    sized: bool = False,
) -> None:
    """Print it: a table of what follows each plan, then which one is `written`, or would be, and why.

    Where sizes were searched (`sized`), plans are named with their microbatch size, which all that follows keeps.
    """
    from rich.console import Console
    from rich.padding import Padding

    console = console or Console(highlight=False)
    label = "written" if written else "choice"
    for part in (_table(config, views, sized), _verdict(config, fastest, views, label, sized)):
        console.print(Padding(part, (0, 0, 1, 1), expand=False))


def _table(config: RunConfig, views: Views, sized: bool) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("nodes", justify="right", no_wrap=True)
    table.add_column("layout", overflow="fold")
    for name in ("tokens/s", "GiB in", "switch", "pause"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan, look in views:
        table.add_row(str(config.cluster.nodes), Text(plan.name(sized), style="bold"), f"{plan.tokens_per_s:,.0f}")
        for successor in merged(look.successors):
            table.add_row(str(config.cluster.nodes + successor.change), *_cells(successor, plan), style="")
        table.add_section()
    return table


def _cells(successor: Successor, plan: Plan) -> list[str]:
    from trainsys.cli.units import gib, seconds

    lost = f"{successor.lost_steps:g} step{'s'[: successor.lost_steps != 1]} lost" if successor.lost_steps else ""
    often = f" ({successor.share:.0%} of the nodes)" if successor.share < 0.995 else ""
    if not successor.layout:
        return [f"stops{often}: {successor.why}; {lost}", "0", "", "", ""]
    back = f"; {successor.why}; from the checkpoint, {lost}" if lost else ""
    rate = f"{successor.tokens_per_s:,.0f} {successor.tokens_per_s / plan.tokens_per_s:4.0%}"
    switch = "" if lost else seconds(successor.switch_s)
    return [successor.layout + often + back, rate, gib(successor.received_gib), switch, seconds(successor.pause_s)]


def merged(successors: Sequence[Successor]) -> list[Successor]:
    """Those that lead to one layout as one: most nodes first, and of one number the most frequent first.

    Bytes and seconds are the most of them.
    """
    kinds: dict[tuple[int, str, str, bool], list[Successor]] = {}
    for s in successors:
        kinds.setdefault((s.change, s.layout, "" if s.layout else s.why, s.lost_steps > 0), []).append(s)
    return sorted((_worst(same) for same in kinds.values()), key=lambda s: (-s.change, -s.share))


def _worst(same: Sequence[Successor]) -> Successor:
    most = {name: max(getattr(s, name) for s in same) for name in ("received_gib", "switch_s", "planning_s", "pause_s")}
    return replace(same[0], share=sum(s.share for s in same), **most)


def _verdict(config: RunConfig, fastest: Plan, views: Views, label: str, sized: bool) -> Table:
    """Which plan is written, and what each earns."""
    from trainsys.cli.units import grid

    table, cluster = grid(), config.cluster
    best, look = views[0]
    if not cluster.node_mtbf_hours:
        table.add_row(label, f"{best.name(sized)}, the fastest; set cluster.node_mtbf_hours to weigh failures")
        return table
    table.add_row(
        "failures", f"of a node every {cluster.node_mtbf_hours:g} h, back after {cluster.node_repair_hours:g} h"
    )
    for place, (plan, own) in enumerate(views):
        earned = f"{own.goodput:,.0f} tokens/s, {own.availability:.2%} of what it makes without failures"
        table.add_row("" if place else "goodput", f"{plan.name(sized)}: {earned}")
    said = f"{best.name(sized)}, which earns most"
    if best != fastest:
        other = next(own for plan, own in views if plan == fastest)
        said += f": {look.goodput / other.goodput - 1:.1%} more than the fastest, {fastest.name(sized)}"
    table.add_row(label, said)
    lost = max((-s.change for s in look.successors), default=0)
    goes_on = any(s.layout for s in look.successors if s.change == -lost)
    if look.beyond > _RARE and goes_on and lost < cluster.nodes - 1:
        nodes = f"{lost} node{'s are' if lost != 1 else ' is'}"
        said = f"more than {nodes} lost {look.beyond:.0%} of the time, counted as standing still"
        table.add_row("", f"{said}; look further with --nodes-lost {lost + 1}")
    return table
