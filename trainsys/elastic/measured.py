"""One step, predicted and as it ran, on one clock that starts at 0."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from trainsys.config import RunConfig
from trainsys.elastic.recorder import Recorder
from trainsys.planner.timeline import timeline
from trainsys.schedule.compare import Comparison, compare
from trainsys.schedule.simulate import Event


def write_timelines(config: RunConfig, recorder: Recorder, picture: bool = False) -> Comparison | None:
    """Write trace.json (and timeline.png) into ``config.run_dir``.

    Returns:
        How far the two are apart; None when no step was traced.
    """
    from trainsys.schedule.picture import draw
    from trainsys.schedule.timeline import chrome_trace

    folder = Path(config.run_dir)
    title, groups = timelines(config, recorder)
    try:
        (folder / "trace.json").write_text(json.dumps(chrome_trace(groups)) + "\n")
        if picture:
            draw(groups, folder / "timeline.png", title)
    except OSError as error:
        recorder.say(f"trace.json and timeline.png cannot be written: {error.strerror}")
    if "measured" not in groups:
        return None
    return compare(max(recorder.traces), groups["predicted"], groups["measured"])


def tell_comparison(comparison: Comparison) -> str:
    """``Forward and backward of step 39: predicted 0.21 s, measured 0.25 s (-16.0%); timeline error 7.1% (…).``"""
    return (
        f"Forward and backward of step {comparison.step}: predicted {comparison.predicted_s:.3g} s, measured "
        f"{comparison.measured_s:.3g} s ({comparison.step_error:+.1%}); timeline error {comparison.timeline_error:.1%} "
        "(mean distance of the actions' ends, of the step)."
    )


def timelines(config: RunConfig, recorder: Recorder) -> tuple[str, dict[str, Sequence[Event]]]:
    """A title, and the events of the predicted step beside those of the last traced one (if any was traced).

    Both are of the layout that the traced step had. What was emulated is predicted in emulated seconds.
    """
    measured = measured_step(recorder)
    if measured is not None:
        parallel = next((c.parallel for c in reversed(recorder.changes) if c.step <= measured[0]), None)
        config = dataclasses.replace(config, parallel=parallel or config.parallel)
    scale = config.train.emulate_scale if config.train.emulate else 1.0
    predicted = timeline(config).run.events
    groups: dict[str, Sequence[Event]] = {
        "predicted": [e._replace(start_s=scale * e.start_s, end_s=scale * e.end_s) for e in predicted]
    }
    title = f"{config.parallel.schedule}: one step"
    if measured is not None:
        step, groups["measured"] = measured
        ran = "emulated" if config.train.emulate else "measured"
        title = f"{recorder.layouts[step]} {config.parallel.schedule}: step {step}, predicted by the planner and {ran}"
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
