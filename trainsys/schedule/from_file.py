"""A schedule that is read from a file rather than generated: ``parallel.schedule=FILE.csv``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from trainsys.schedule.actions import Action
from trainsys.schedule.problem import Problem
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.torch_csv import import_csv
from trainsys.space.runs import FOLDED, host_of


def is_file(name: str) -> bool:
    """Whether a schedule of this name is read rather than generated."""
    return name.endswith(".csv")


def lies_in_v(name: str) -> bool:
    """Whether the named schedule, a file or not, is made for runs of layers in a V."""
    if not is_file(name):
        return name in FOLDED
    return not _lies(_read(name), folded=False)


def from_file(path: str, problem: Problem) -> Schedule:
    """The file's rows, run by every replica with its own microbatches.

    Raises:
        ValueError: the file cannot be read, or is for other stages, microbatches or another placement than `problem`.
    """
    one, depth, routes = _read(path), problem.depth, problem.routes
    file = f"parallel.schedule={path}"
    if one.num_lanes != depth:
        raise ValueError(
            f"{file} has {_many(one.num_lanes, 'rank')} but parallel.pp={depth}; set parallel.pp={one.num_lanes}"
        )
    vp = one.routes.num_stages // one.num_lanes
    if vp != problem.vp:
        raise ValueError(f"{file} has {_many(vp, 'stage')} per rank but parallel.vp={problem.vp}; set parallel.vp={vp}")
    if not _lies(one, problem.folded):
        has, knob = ("a loop", "loop") if problem.folded else ("a V", "v")
        raise ValueError(f"{file} has its stages in {has}; set parallel.placement={knob}")
    if len(set(routes.table)) > 1:
        raise ValueError(
            f"{file} is for stages with equally many replicas but they have {list(routes.replicas[:depth])}; "
            "leave parallel.stage_replicas empty"
        )
    own = [routes.microbatches(0, replica) for replica in range(routes.replicas[0])]
    count = one.routes.num_microbatches
    for mine in own:
        if len(mine) != count:
            among = f" of parallel.dp={len(own)}" if len(own) > 1 else ""
            raise ValueError(
                f"{file} has {_many(count, 'microbatch')} but a replica{among} has {len(mine)}; set "
                f"batch.global_size={count * len(own)} · batch.microbatch_size"
            )
    lanes = {
        problem.placement[rank, replica]: tuple(Action(a.stage, a.kind, mine[a.microbatch]) for a in one.lanes[rank])
        for rank in range(depth)
        for replica, mine in enumerate(own)
    }
    return Schedule(one.name, routes, tuple(lanes[lane] for lane in range(len(lanes))), problem.placement)


@lru_cache(maxsize=8)
def _read(path: str) -> Schedule:
    """Once per process: what was planned is what runs, even if the file changes meanwhile."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"parallel.schedule={path} cannot be read: {why}; set another file or name") from None
    try:
        return import_csv(text, path)
    except ValueError as error:
        raise ValueError(f"parallel.schedule={error}") from None


def _lies(one: Schedule, folded: bool) -> bool:
    return all(host_of(stage, one.num_lanes, folded) == rank for (stage, _), rank in one.placement.items())


def _many(count: int, what: str) -> str:
    return f"{count} {what}{('es' if what.endswith('h') else 's')[: 2 * (count != 1)]}"
