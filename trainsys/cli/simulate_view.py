"""What `trainsys simulate` shows of one step: a table of its lanes, and the panel of its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainsys.planner.stages import notation

if TYPE_CHECKING:
    from rich.table import Table

    from trainsys.config import RunConfig
    from trainsys.planner.timeline import Timeline
    from trainsys.schedule.picture import Panel

_MOST_LANES = 24  # drawn; of more only the first replica of each stage


def lanes_table(config: RunConfig, result: Timeline) -> Table:
    """One row per lane: what it computes, how long, and what a rank of it holds at most."""
    from rich.table import Table

    run, schedule = result.run, result.schedule
    microbatches = schedule.routes.num_microbatches
    caption = f"{schedule.name}, {microbatches} microbatch{'es'[: 2 * (microbatches != 1)]}"
    table = Table(title=caption, title_justify="left")
    replicas = max(schedule.routes.replicas) > 1
    headings = ["lane", "stage", "replica"] if replicas else ["lane", "stage"]
    for heading in (*headings, "busy (s)", "idle (s)", "idle", "peak activations", "peak (GiB)"):
        table.add_column(heading, justify="right")
    for lane, places in enumerate(_hosted(result)):
        stages, busy_s = "+".join(str(stage) for stage, _ in places), run.busy_s[lane]
        table.add_row(
            str(lane), stages, *([str(places[0][1])] if replicas else []),
            f"{busy_s:.4g}", f"{run.step_s - busy_s:.4g}", f"{1 - busy_s / run.step_s:.0%}",
            str(run.peak_activations[lane]), f"{result.peak_gib[lane]:.3g}",
        )  # fmt: skip
    return table


def panel(result: Timeline, title: str, brief: bool = False) -> Panel:
    """The lanes of a picture, with their memory; where there are many, those of the first replica of each stage.

    `brief`: these alone where all stages have equally many replicas, and no memory.
    """
    from trainsys.schedule.picture import Panel

    lanes = list(range(result.schedule.num_lanes))
    alike = len(set(result.schedule.routes.replicas)) == 1
    if len(lanes) > _MOST_LANES or (brief and alike):
        lanes = [lane for lane, places in enumerate(_hosted(result)) if places[0][1] == 0]
        title = title if brief else f"{title}, replica 0 of each stage"
    chosen = set(lanes)
    events = [event for event in result.run.events if event.lane in chosen]
    return Panel(title, events, {lane: result.memory_curve(lane) for lane in lanes} if not brief else None)


def title(config: RunConfig, result: Timeline) -> str:
    """``1f1b: dp2·tp1·pp4, 8 microbatches, bubble 27.3 %``."""
    layout = notation(config.parallel)
    name = result.schedule.name
    return (
        f"{layout if name in layout.split() else f'{layout} {name}'}, {result.schedule.routes.num_microbatches} "
        f"microbatches, bubble {result.run.bubble:.1%}"
    )


def _hosted(result: Timeline) -> list[list[tuple[int, int]]]:
    """Per lane the (stage, replica) pairs that it runs."""
    hosted: list[list[tuple[int, int]]] = [[] for _ in result.schedule.lanes]
    for place, lane in sorted(result.schedule.placement.items()):
        hosted[lane].append(place)
    return hosted
