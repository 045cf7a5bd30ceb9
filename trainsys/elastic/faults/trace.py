"""A recorded spot market: at which time which node came or went.

CSV with a header: ``time_s,event,node``, where event is add or remove, and lines are in the order of their times.
"""

from __future__ import annotations

import csv
from math import isfinite
from pathlib import Path

from trainsys.elastic.faults.poisson import Stroke

_HEADER = ["time_s", "event", "node"]


def read_trace(path: Path | str, speed: float = 1.0) -> tuple[Stroke, ...]:
    """The events of a trace, `speed` of its seconds in one.

    Raises:
        ValueError: one line with the file, the line, and what was expected there.
    """
    strokes: list[Stroke] = []
    there = set[str]()
    try:
        stream = Path(path).open(newline="")  # noqa: SIM115 (closed below, where its errors are told by line)
    except OSError as error:
        raise ValueError(f"faults.trace={path} cannot be read: {error.strerror}") from None
    with stream:
        rows = csv.reader(stream)
        try:
            header = [cell.strip() for cell in next(rows, [])]
            if header != _HEADER:
                raise ValueError(f"{path}:1: expected the header {','.join(_HEADER)}, found {','.join(header)!r}")
            for row in rows:
                if row:
                    strokes.append(_stroke(f"{path}:{rows.line_num}", row, strokes, there, speed))
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{rows.line_num + 1}: expected lines of text: {error}") from None
    if not strokes:
        raise ValueError(f"{path}:2: expected at least one event, the file ends here")
    return tuple(strokes)


def _stroke(place: str, row: list[str], before: list[Stroke], there: set[str], speed: float) -> Stroke:
    if len(row) != len(_HEADER):
        raise ValueError(f"{place}: expected {','.join(_HEADER)}, found {len(row)} field{'s'[: len(row) != 1]}")
    when, event, node = (cell.strip() for cell in row)
    try:
        time_s = float(when)
    except ValueError:
        time_s = -1.0
    if not (isfinite(time_s) and time_s >= 0):
        raise ValueError(f"{place}: expected a time in seconds that is not negative, found {when!r}")
    if before and time_s / speed < before[-1].time_s:
        raise ValueError(f"{place}: expected a time of {before[-1].time_s * speed:g} s or later, found {when}")
    if event not in ("add", "remove"):
        raise ValueError(f"{place}: expected the event add or remove, found {event!r}")
    if not node:
        raise ValueError(f"{place}: expected the name of a node, found none")
    if event == "add" and node in there:
        raise ValueError(f"{place}: expected a node that is not there, {node} was added before")
    if event == "remove" and node not in there:
        raise ValueError(f"{place}: expected a node that is there, {node} was not added before")
    (there.add if event == "add" else there.discard)(node)
    return Stroke(time_s / speed, event, node)
