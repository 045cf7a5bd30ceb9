"""A Chrome (Perfetto) trace of a step, from predicted or measured events alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainsys.schedule.actions import Kind
from trainsys.schedule.simulate import Event

_CHROME = {  # names of the trace viewer's own palette
    Kind.F: "thread_state_running",
    Kind.B: "good",
    Kind.I: "rail_response",
    Kind.W: "bad",
    Kind.R: "thread_state_runnable",
    Kind.E: "rail_load",
    Kind.S: "rail_animation",
    Kind.T: "terrible",
    Kind.G: "rail_idle",
}


def chrome_trace(rows: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    """The Trace Event Format (JSON object form) that chrome://tracing and ui.perfetto.dev open.

    Args:
        rows: events by group, such as "predicted" and "measured"; each group becomes a process, each lane a thread.
            A transfer overlaps its lane's compute, so it stands on a thread of its own below it.

    Returns:
        A dict for ``json.dump``; times in microseconds.
    """
    trace: list[dict[str, Any]] = []
    for pid, (group, events) in enumerate(rows.items()):
        trace.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": group}})
        trace.append({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}})
        for tid, (label, track) in enumerate(_tracks(events)):
            trace.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": label}})
            trace.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}})
            trace += [_slice(pid, tid, event) for event in track]
    return {"traceEvents": trace, "displayTimeUnit": "ms"}


def _tracks(events: Sequence[Event]) -> list[tuple[str, list[Event]]]:
    """Threads in which no two events overlap: per lane its compute, then as many transfer threads as it needs."""
    tracks: list[tuple[str, list[Event]]] = []
    ordered = sorted(events, key=lambda e: (e.start_s, e.end_s))
    for lane in sorted({e.lane for e in events}):
        for compute, name in ((True, f"lane {lane}"), (False, f"lane {lane} transfers")):
            lines: list[list[Event]] = []
            for event in (e for e in ordered if e.lane == lane and e.action.is_compute == compute):
                for line in lines:
                    if line[-1].end_s <= event.start_s:
                        line.append(event)
                        break
                else:
                    lines.append([event])
            tracks += [(name, line) for line in lines]
    return tracks


def _slice(pid: int, tid: int, event: Event) -> dict[str, Any]:
    action = event.action
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": str(action),
        "cat": "compute" if action.is_compute else "transfer",
        "ts": event.start_s * 1e6,
        "dur": (event.end_s - event.start_s) * 1e6,
        "cname": _CHROME.get(action.kind, "generic_work"),
        "args": {"stage": action.stage, "kind": action.kind.value, "microbatch": action.microbatch},
    }
