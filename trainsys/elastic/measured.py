"""One step, predicted and as it ran, on one clock that starts at 0."""

from __future__ import annotations

from trainsys.config import RunConfig
from trainsys.elastic.recorder import Recorder
from trainsys.planner.timeline import timeline
from trainsys.schedule.simulate import Event


def timelines(config: RunConfig, recorder: Recorder) -> tuple[str, dict[str, tuple[Event, ...]]]:
    """A title, and the events of the predicted step beside those of the last traced one (if any was traced)."""
    groups = {"predicted": timeline(config).run.events}
    title = f"{config.parallel.schedule}: one step"
    measured = measured_step(recorder)
    if measured is not None:
        step, events = measured
        title = (
            f"{recorder.layouts[step]} {config.parallel.schedule}: step {step}, predicted by the planner and measured"
        )
        groups["measured"] = events
    return title, groups


def measured_step(recorder: Recorder) -> tuple[int, tuple[Event, ...]] | None:
    """The last traced step and its events, one rank per lane, moved so that the first one starts at 0.

    Ranks report CLOCK_MONOTONIC, which all processes of one machine share.
    """
    if not recorder.traces:
        return None
    step, by_rank = max(recorder.traces.items())
    layout = recorder.layouts[step]
    first = [rank for rank in by_rank if layout.where(rank)[2] == 0 and layout.replica_of(rank)[1] == 0]
    events = [e for rank in first for e in by_rank[rank]]
    start = min(e.start_s for e in events)
    moved = [e._replace(start_s=e.start_s - start, end_s=e.end_s - start) for e in events]
    return step, tuple(sorted(moved, key=lambda e: (e.start_s, e.lane)))
