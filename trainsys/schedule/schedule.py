"""A schedule: for one step, the ordered list of actions of every lane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainsys.schedule.actions import COUNTERPART, Action
from trainsys.schedule.routes import Routes
from trainsys.space.runs import host_of

Placement = Mapping[tuple[int, int], int]  # (stage, replica) -> lane


class ScheduleError(ValueError):
    """A schedule that cannot run to its end, or that computes something else than the step."""


@dataclass(frozen=True)
class Schedule:
    """When each lane does what. A lane is one executing team: the ranks of one replica of one stage.

    Attributes:
        name: the generator's registered name.
        routes: which replica of each stage runs each microbatch.
        lanes: ``lanes[lane]`` is that lane's list of actions, executed in order.
        placement: (stage, replica) -> lane, the only truth about where a stage runs.
        vocabulary: "ends", or the form in which all lanes run E, S, T and G (schedule/vocabulary.py).
    """

    name: str
    routes: Routes
    lanes: tuple[tuple[Action, ...], ...]
    placement: Placement
    vocabulary: str = "ends"

    @property
    def num_lanes(self) -> int:
        return len(self.lanes)

    def lane_of(self, stage: int, microbatch: int) -> int:
        """The lane that runs `stage` for `microbatch`."""
        return self.placement[stage, self.routes.table[stage][microbatch]]

    def peer(self, action: Action) -> int | None:
        """The lane at the other end of a SEND or RECV; None for anything else, and beyond the ends of the path."""
        other = self.counterpart(action)
        return None if other is None else self.lane_of(other.stage, other.microbatch)

    def counterpart(self, action: Action) -> Action | None:
        """The RECV of a SEND and the SEND of a RECV; None for anything else, and beyond the ends of the path."""
        if action.kind not in COUNTERPART:
            return None
        kind, step = COUNTERPART[action.kind]
        stage = (self.routes.after if step > 0 else self.routes.before)(action.stage, action.microbatch)
        return None if stage is None else Action(stage, kind, action.microbatch)

    def format(self) -> str:
        """A text table: one row per lane, one column per place in its list."""
        labels = [f"lane {lane} (stage {_hosted(self.placement, lane)})" for lane in range(self.num_lanes)]
        left = max(map(len, labels))
        cells = [[str(action) for action in lane] for lane in self.lanes]
        columns = max(map(len, cells))
        widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(columns)]
        rows = [f"{self.name}: {self.num_lanes} lanes, {self.routes.num_microbatches} microbatches"]
        for label, row in zip(labels, cells, strict=True):
            body = " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            rows.append(f"{label.ljust(left)} | {body}".rstrip())
        return "\n".join(rows)


def stage_major(replicas: Sequence[int], vp: int = 1, folded: bool = False) -> dict[tuple[int, int], int]:
    """The default placement: lane = sum(replicas[:stage]) + replica; under vp a lane hosts several stages
    (space/runs.py)."""
    count = len(replicas) // vp
    first = [sum(replicas[:stage]) for stage in range(count)]
    hosts = [host_of(stage, count, folded) for stage in range(count * vp)]
    return {(stage, r): first[host] + r for stage, host in enumerate(hosts) for r in range(replicas[stage])}


def dumps(schedule: Schedule) -> str:
    """`schedule` as text that `loads` reads back to an equal object: routes by stage, paths by microbatch
    where there are any, then one line per lane."""
    lines = [f"schedule {schedule.name}"]
    lines += [f"vocabulary {schedule.vocabulary}"] if schedule.vocabulary != "ends" else []
    lines += [f"route {stage}: {' '.join(map(str, row))}" for stage, row in enumerate(schedule.routes.table)]
    lines += [f"path {mb}: {' '.join(map(str, path))}" for mb, path in enumerate(schedule.routes.paths)]
    for lane, actions in enumerate(schedule.lanes):
        lines.append(f"lane {lane} [{_hosted(schedule.placement, lane)}]: {' '.join(map(str, actions))}".rstrip())
    return "\n".join(lines) + "\n"


def loads(text: str) -> Schedule:
    """The schedule that `dumps` wrote.

    Raises:
        ValueError: naming the line, or the token that is not an action.
    """
    name, vocabulary, table, paths = "", "ends", list[tuple[int, ...]](), list[tuple[int, ...]]()
    lanes = list[tuple[Action, ...]]()
    placement: dict[tuple[int, int], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        head, _, body = line.partition(":")
        try:
            match head.split():
                case ["schedule", _]:
                    name = line.split()[1]  # which may have a colon
                case ["vocabulary", vocabulary]:
                    pass
                case ["route", _]:
                    table.append(tuple(map(int, body.split())))
                case ["path", _]:
                    paths.append(tuple(map(int, body.split())))
                case ["lane", _, *hosted]:
                    for pair in " ".join(hosted).strip("[]").split():
                        stage, _, replica = pair.partition(".")
                        placement[int(stage), int(replica)] = len(lanes)
                    lanes.append(tuple(map(Action.parse, body.split())))
                case _:
                    raise ValueError(f"expected 'schedule', 'route', 'path' or 'lane', got {head!r}")
        except ValueError as error:
            raise ValueError(f"schedule text, line {number}: {error}") from None
    return Schedule(name, Routes(tuple(table), tuple(paths)), tuple(lanes), placement, vocabulary)


def _hosted(placement: Placement, lane: int) -> str:
    """The (stage, replica) pairs on `lane`, as ``0.1 2.0``."""
    return " ".join(f"{stage}.{replica}" for (stage, replica), at in sorted(placement.items()) if at == lane)
