"""Schedules as torch.distributed.pipelining (2.13) writes them: CSV, one row per rank, one cell per action, in and out.

A file is of one of two formats. *Compute only* has F, B, I and W, and its reader adds the communication. *With comms*
has SENDs and RECVs too, and what torch's engine does to sharded weights: UNSHARD, RESHARD, REDUCE_GRAD.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence

from trainsys.schedule.actions import COMPUTE, COUNTERPART, VOCABULARY, Action, Kind
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.verify import verify
from trainsys.space.runs import host_of

_BACKWARD = (Kind.B, Kind.I)
_LAST = (Kind.B, Kind.W)  # what ends a microbatch on its stage
_KNOB = {
    Kind.R: "parallel.recompute=none or full",
    Kind.OFFLOAD: "parallel.offload=none or activations",
    Kind.RELOAD: "parallel.offload=none or activations",
    **dict.fromkeys(VOCABULARY, "parallel.vocabulary=ends"),
}
_ENGINE = ("UNSHARD", "RESHARD", "REDUCE_GRAD")
_PAIR = "OVERLAP_F_B"


def export_csv(schedule: Schedule, with_comms: bool = False) -> str:
    """A verified schedule in the notation of torch, read there by ``_PipelineScheduleRuntime._load_csv``.

    Where stages have several replicas, torch runs each pipeline by itself; written is the one of the first replicas,
    its microbatches numbered from 0.

    Args:
        with_comms: the format ``compute_comms`` rather than ``compute_only``. torch tells messages between two ranks
            apart by their order alone, so SEND and RECV of each are put at the same moment of a run, whatever place
            `schedule` gives them. A stage's weights are gathered before its first action and its gradients reduced
            after its last.

    Raises:
        ValueError: stages that some microbatch skips, replicas that are not alike, or actions that torch has not.
    """
    rows = _column(schedule)
    cells = _lowered(rows) if with_comms else [[str(action) for action in row] for row in rows]
    return "".join(",".join(row) + "\n" for row in cells)


def _column(schedule: Schedule) -> list[list[Action]]:
    """The computations of the first replica of each stage."""
    name, routes = schedule.name, schedule.routes
    if routes.paths:
        raise ValueError(f"{name}: microbatches skip stages or swap them, which torch's pipelines cannot")
    mine = routes.microbatches(0, 0)
    for stage in range(1, routes.num_stages):
        if routes.microbatches(stage, 0) != mine:
            raise ValueError(
                f"{name}: the first replica of stage 0 has microbatches {list(mine)}, that of stage {stage} "
                f"{list(routes.microbatches(stage, 0))}; torch's pipelines do not mix, leave parallel.stage_replicas "
                "empty"
            )
    number = {mb: i for i, mb in enumerate(mine)}
    lanes = dict.fromkeys(schedule.placement[stage, 0] for stage in range(routes.num_stages))
    rows = []
    for actions in (schedule.lanes[lane] for lane in lanes):
        for action in actions:
            if action.kind in _KNOB:
                raise ValueError(f"{name}: torch has no {action.kind} as in {action}; set {_KNOB[action.kind]}")
        rows.append([Action(a.stage, a.kind, number[a.microbatch]) for a in actions if a.kind in COMPUTE])
    return rows


def _lowered(rows: Sequence[Sequence[Action]]) -> list[list[str]]:
    """The rows with messages: each rank in turn does what it can, and a SEND and its RECV are written together."""
    host = {action.stage: rank for rank, row in enumerate(rows) for action in row}
    last = max(host)
    left = [list(reversed(row)) for row in rows]
    ends = Counter(action.stage for row in rows for action in row if action.kind in _LAST)
    arrived: set[Action] = set()
    cells = [[f"{stage}UNSHARD" for stage in sorted(host) if host[stage] == rank] for rank in range(len(rows))]
    while any(left):
        before = sum(map(len, left))
        for rank, queue in enumerate(left):
            awaited = _awaited(queue[-1], last) if queue else None
            if not queue or (awaited and awaited not in arrived):
                continue
            action = queue.pop()
            cells[rank].append(str(action))
            receive = _handed_on(action, last)
            if receive is not None:
                arrived.add(receive)
                if host[receive.stage] != rank:
                    cells[rank].append(str(receive.counterpart()))
                    cells[host[receive.stage]].append(str(receive))
            ends[action.stage] -= action.kind in _LAST
            if action.kind in _LAST and not ends[action.stage]:
                cells[rank] += [f"{action.stage}REDUCE_GRAD", f"{action.stage}RESHARD"]
        assert sum(map(len, left)) < before, "ranks wait for each other; verify the schedule first"
    return cells


def _awaited(action: Action, last: int) -> Action | None:
    """The RECV of what `action` computes with, whether or not it comes from another rank."""
    if action.kind is Kind.F and action.stage > 0:
        return Action(action.stage, Kind.RECV_F, action.microbatch)
    if action.kind in _BACKWARD and action.stage < last:
        return Action(action.stage, Kind.RECV_B, action.microbatch)
    return None


def _handed_on(action: Action, last: int) -> Action | None:
    """The RECV of what `action` makes for the next stage."""
    if action.kind is Kind.F and action.stage < last:
        return Action(action.stage + 1, Kind.RECV_F, action.microbatch)
    if action.kind in _BACKWARD and action.stage > 0:
        return Action(action.stage - 1, Kind.RECV_B, action.microbatch)
    return None


def import_csv(text: str, name: str) -> Schedule:
    """The schedule of one pipeline that torch, or `export_csv`, wrote in either format, verified.

    A file without messages gets ours (`insert_comms`); one with messages is taken as it is. UNSHARD, RESHARD and
    REDUCE_GRAD are dropped, our engine gathers and reduces by itself. The parts of an OVERLAP_F_B come one after the
    other, and empty cells are nothing. Which rank has which stages is read off the rows: in a loop, or in a V.

    Args:
        name: of the file; it becomes the schedule's.

    Raises:
        ValueError: naming the file, and the row, column and cell, or the lane and the action, or the cycle.
    """
    host, rows = _rows(text, name)
    microbatches = {action.microbatch for row in rows for action in row}
    for what, found in (("stage", set(host)), ("microbatch", microbatches)):
        if not found:
            raise ValueError(f"{name} is empty; write one row of actions per rank")
        if absent := set(range(len(found))) - found:
            raise ValueError(f"{name}: {what} {min(absent)} is missing, the highest is {max(found)}")
    _check_placement(name, host, len(rows))
    routes = Routes(((0,) * len(microbatches),) * len(host))
    schedule = Schedule(name, routes, tuple(rows), {(stage, 0): host[stage] - 1 for stage in sorted(host)})
    if not any(action.kind in COUNTERPART for row in rows for action in row):
        schedule = insert_comms(schedule)
    try:
        verify(schedule)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return schedule


def _rows(text: str, name: str) -> tuple[dict[int, int], list[tuple[Action, ...]]]:
    """Stage -> the number of its row, from 1, and the actions of each row."""
    host: dict[int, int] = {}
    rows: list[tuple[Action, ...]] = []
    for number, cells in enumerate(csv.reader(text.rstrip().splitlines()), start=1):
        row: list[Action] = []
        for column, cell in enumerate(cells, start=1):
            try:
                for action in _actions(cell.strip()):
                    other = host.setdefault(action.stage, number)
                    if other != number:
                        raise ValueError(f"stage {action.stage} is on row {other}; one rank runs all of a stage")
                    row.append(action)
            except ValueError as error:
                raise ValueError(f"{name}, row {number}, column {column}, cell {cell!r}: {error}") from None
        if not row:
            raise ValueError(f"{name}, row {number}: no action; every rank has a stage")
        rows.append(tuple(row))
    return host, rows


def _actions(cell: str) -> Iterator[Action]:
    """What a cell says; nothing for an idle one and for what our engine does by itself."""
    if not cell or cell.lstrip("0123456789") in _ENGINE:
        return
    parts = [cell]
    if cell.startswith("("):
        inside, _, kind = cell[1:].partition(")")
        if kind != _PAIR:
            raise ValueError(f"write (<action>;<action>){_PAIR}")
        parts = inside.split(";")
    for part in parts:
        action = Action.parse(part.strip())
        if action.kind in _KNOB:
            raise ValueError(f"torch has no {action.kind}; set {_KNOB[action.kind].split('=')[0]} instead")
        yield action


def _check_placement(name: str, host: dict[int, int], ranks: int) -> None:
    """Whether the stages lie in a loop or in a V over `ranks` rows. Raises ValueError for anything else."""
    if len(host) % ranks:
        raise ValueError(f"{name}: {len(host)} stages on {ranks} ranks; every rank has equally many")
    wrong = []
    for folded in (False, True):
        stage = next((s for s in range(len(host)) if host_of(s, ranks, folded) != host[s] - 1), None)
        if stage is None:
            return
        wrong.append(stage)
    (loop, v), (row, turned) = wrong, (host_of(stage, ranks, i > 0) + 1 for i, stage in enumerate(wrong))
    raise ValueError(
        f"{name}: the stages lie neither in a loop nor in a V: stage {loop} is on row {host[loop]}, in a loop it is on "
        f"row {row}; stage {v} is on row {host[v]}, in a V on row {turned}"
    )
