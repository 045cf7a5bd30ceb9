"""Read the histories of a run: every attempt with its manager's lines and its ranks', each line with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trainsys.elastic.history import FOLDER
from trainsys.space.layout import Layout
from trainsys.space.tensor import LogicalTensor, Space


@dataclass(frozen=True)
class Line:
    """One line of one file. ``line["step"]`` is its field; `where` its place."""

    file: str
    number: int
    data: Mapping[str, Any]

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"

    @property
    def event(self) -> str:
        return str(self.data["event"])

    def __getitem__(self, key: str) -> Any:
        if key not in self.data:
            raise KeyError(f"{self.where} has no {key!r}")
        return self.data[key]


@dataclass
class Attempt:
    """One life of a run, from its manager's start to its end.

    Attributes:
        manager: the manager's lines; never empty.
        ranks: the lines of each rank that worked, or was to.
    """

    manager: list[Line]
    ranks: dict[int, list[Line]] = field(default_factory=dict)

    @property
    def start(self) -> Line:
        return self.manager[0]

    def told(self, event: str) -> list[Line]:
        """The manager's lines of one kind."""
        return [line for line in self.manager if line.event == event]

    def of_ranks(self, event: str) -> Iterator[tuple[int, Line]]:
        """(rank, line) of one kind."""
        return ((rank, line) for rank, lines in self.ranks.items() for line in lines if line.event == event)

    @cached_property
    def opened(self) -> dict[int, Line]:
        """Epoch -> where everybody was sent."""
        return {line["epoch"]: line for line in self.told("opened")}

    @cached_property
    def switched(self) -> dict[int, Line]:
        """Epoch -> the commit of its layout."""
        return {line["epoch"]: line for line in self.told("switched")}

    @cached_property
    def lost(self) -> dict[int, Line]:
        """Rank -> its eviction."""
        return {line["rank"]: line for line in self.told("lost")}

    @cached_property
    def ended(self) -> Line | None:
        return next(iter(self.told("ended")), None)

    @cached_property
    def space(self) -> Space:
        return Space(tuple(LogicalTensor(**{k: _tuples(v) for k, v in t.items()}) for t in self.start["tensors"]))

    def layout(self, epoch: int) -> Layout:
        """Of an epoch that was opened."""
        if epoch not in self._layouts:
            self._layouts[epoch] = Layout.from_dict(self.opened[epoch]["layout"])
        return self._layouts[epoch]

    @cached_property
    def _layouts(self) -> dict[int, Layout]:
        return {}

    def same_clock(self, rank: int) -> bool:
        """Whether a rank's monotonic clock is the manager's."""
        return bool(self.ranks[rank][0].data.get("host") == self.start["host"])


@dataclass
class Record:
    """All attempts of a run, in order.

    Attributes:
        torn: files whose last line was cut off: their process was killed while it wrote.
        defects: (where, what) of lines and files that cannot be.
        num_lines: read.
    """

    attempts: list[Attempt]
    torn: list[str]
    defects: list[tuple[str, str]]
    num_lines: int

    def standing(self) -> list[tuple[Attempt, Line]]:
        """The commits that count: a resumed run replaces those from its first step on."""
        found = []
        for i, attempt in enumerate(self.attempts):
            redone = min((later.start["start_step"] for later in self.attempts[i + 1 :]), default=None)
            found += [(attempt, c) for c in attempt.told("committed") if redone is None or c["step"] < redone]
        return found


def read(run_dir: Path | str) -> Record:
    """Every history of a run's folder.

    Raises:
        ValueError: there is none.
    """
    folder = Path(run_dir) / FOLDER
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise ValueError(f"{run_dir} has no {FOLDER}/*.jsonl to check; train or drill with elastic.history=true")
    record = Record([], [], [], 0)
    managers: dict[str, Attempt] = {}
    ranks: list[list[Line]] = []
    for path in paths:
        lines = _lines(path, record)
        record.num_lines += len(lines)
        if not lines or not _begins(lines[0], path.name.startswith("manager-")):
            record.defects.append((f"{path.name}:1", "the file does not begin with its process's start"))
        elif path.name.startswith("manager-"):
            managers[lines[0]["run"]] = Attempt(lines)
        else:
            ranks.append(lines)
    for lines in ranks:
        attempt = managers.get(lines[0]["run"])
        if attempt is None:
            record.defects.append((lines[0].where, f"there is no manager's file of run {lines[0]['run']}"))
        elif lines[0]["rank"] in attempt.ranks:
            record.defects.append((lines[0].where, f"there is another file of rank {lines[0]['rank']} of the same run"))
        else:
            attempt.ranks[lines[0]["rank"]] = lines
    record.attempts = sorted(managers.values(), key=lambda attempt: float(attempt.start["unix_s"]))
    if not record.attempts:
        raise ValueError(f"{folder} has no manager's history; copy that file too")
    return record


def _begins(line: Line, manager: bool) -> bool:
    """Whether a first line names its run, its time, and its rank."""
    named = isinstance(line.data.get("run"), str) and isinstance(line.data["unix_s"], int | float)
    return line.event == "started" and named and (manager or isinstance(line.data.get("rank"), int))


def _lines(path: Path, record: Record) -> list[Line]:
    """The lines of a file; the last may be cut off, no other."""
    found = []
    rows = path.read_bytes().split(b"\n")
    tail = rows.pop()  # empty, if the file ends with its last line
    if tail:
        record.torn.append(path.name)
    for number, row in enumerate(rows, 1):
        try:
            data = json.loads(row)
        except ValueError:
            data = None
        if not isinstance(data, dict) or not {"event", "t_s", "unix_s"} <= data.keys():
            record.defects.append((f"{path.name}:{number}", "the line is torn, and is not the file's last"))
        else:
            found.append(Line(path.name, number, data))
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
