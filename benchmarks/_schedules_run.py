"""One schedule under emulated compute on both engines: rank bodies, and what they measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks._clock import Span, median_s, span
from benchmarks._lasting import WIDTH, Scale, total
from benchmarks._torch_runtime import ModuleStage, torch_engine, world
from benchmarks._torch_schedules import CLASSES, torch_csv
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import Group
from trainsys.parallel.executor import Executor
from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.costs import Costs
from trainsys.schedule.generators import GENERATORS, build
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.torch_csv import export_csv, import_csv
from trainsys.space.runs import FOLDED

TWO_RUNS = frozenset({*FOLDED, "interleaved", "bfs"})  # with two stages per rank, the others with one


@dataclass(frozen=True)
class Case:
    """A schedule of one pipeline, and the file that torch's engine runs (with comms)."""

    name: str
    schedule: Schedule
    text: str

    @property
    def ranks(self) -> int:
        return self.schedule.num_lanes

    @property
    def microbatches(self) -> int:
        return self.schedule.routes.num_microbatches

    @property
    def vp(self) -> int:
        return self.schedule.routes.num_stages // self.ranks


def cases(ranks: int, microbatches: int, only: tuple[str, ...] = ()) -> Iterator[Case]:
    """Every schedule of the registry by its name, and torch's as ``torch NAME``; those of `only` where it has any."""
    for name in GENERATORS:
        if not only or name in only:
            vp, folded = 2 if name in TWO_RUNS else 1, name in FOLDED
            schedule = build(name, Routes.balanced(microbatches, [1] * ranks, vp, folded), vp)
            yield Case(name, schedule, export_csv(schedule, with_comms=True))
    for name in CLASSES:
        if not only or f"torch {name}" in only:
            plain, lowered = torch_csv(name, ranks, microbatches)
            yield Case(f"torch {name}", import_csv(plain, f"torch {name}"), lowered)


def costs(case: Case, t: float) -> Costs:
    """F, I and W take `t` seconds per rank and microbatch each, shared among its stages, B as long as I and W."""
    one = [t / case.vp] * case.schedule.routes.num_stages
    return Costs(one, [2 * s for s in one], i_s=one, w_s=one)


def repeated(schedule: Schedule, times: int) -> Schedule:
    """The same step `times` times, each lane going on with the next one at once."""
    count = schedule.routes.num_microbatches
    lanes = tuple(
        tuple(Action(a.stage, a.kind, a.microbatch + count * k) for k in range(times) for a in lane)
        for lane in schedule.lanes
    )
    routes = Routes(tuple(row * times for row in schedule.routes.table))
    return Schedule(schedule.name, routes, lanes, schedule.placement)


def body(
    rank: int, world_size: int, store: Any, case: Case, t: float, repeat: int, row: int, peer: bool
) -> dict[str, list[Span]]:
    """One rank: what -> start and end of each repetition on the common clock.

    ``ours`` and ``torch`` are one step, ``ours row`` and ``torch row`` are `row` steps, ``ours empty`` and ``torch
    empty`` are one step that waits beside nothing, and ``work`` is what its actions do, without an engine. They take
    turns, so that both engines meet the same load.
    """
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group = comm.group(members)
    with ExitStack() as stack:
        engines = {"ours": lambda seconds: ours(case, rank, group, seconds).run}
        work = work_of(ours(case, rank, group, 0.0))
        if peer:
            stack.enter_context(world(store, rank, world_size))
            engines["torch"] = lambda seconds: theirs(case, rank, seconds)
        spans: dict[str, list[Span]] = {}
        slow, empty = ({name: make(s) for name, make in engines.items()} for s in (t / case.vp, 0.0))
        for run in [*slow.values(), *empty.values()] if t else empty.values():  # connects and warms up
            span(group, run)
        for _ in range(repeat):
            for name, run in slow.items():
                spans.setdefault(name, []).append(span(group, run))
                spans.setdefault(f"{name} row", []).append(span(group, in_a_row(run, row)))
            for name, run in [*empty.items()] * 9:
                spans.setdefault(f"{name} empty", []).append(span(group, run))
            spans.setdefault("work", []).extend(span(group, work) for _ in range(9))
    comm.close()
    return spans


def work_of(executor: Executor) -> Callable[[], None]:
    """The computations of a lane one after the other, on zeros: no engine, no messages."""
    last, stages = executor.schedule.routes.num_stages - 1, executor.runners
    actions = [action for action in executor.actions if action.is_compute]

    def run() -> None:
        for action in actions:
            stage, mb = stages[action.stage], action.microbatch
            if action.kind is Kind.F:
                stage.forward(mb, stage.boundary(mb).zero_() if action.stage else None)
            elif action.kind is Kind.W:
                stage.backward_weight(mb)
            else:
                half = stage.backward if action.kind is Kind.B else stage.backward_input
                half(mb, None if action.stage == last else stage.boundary(mb).zero_())

    return run


def in_a_row(run: Callable[[], None], times: int) -> Callable[[], None]:
    """Several steps with nothing in between."""

    def several() -> None:
        for _ in range(times):
            run()

    return several


def ours(case: Case, rank: int, group: Group, seconds: float) -> Executor:
    """Our engine: stages of `seconds` per F, I and W."""
    last, data = case.schedule.routes.num_stages - 1, torch.zeros(case.microbatches, WIDTH)
    hosted = [stage for (stage, _), lane in case.schedule.placement.items() if lane == rank]
    runners = {
        s: ModuleStage(
            Scale(), data[:1].shape, None if s else data, data if s == last else None,
            total, seconds,
        )
        for s in hosted
    }  # fmt: skip
    return Executor(case.schedule, rank, runners, group, {lane: lane for lane in range(case.ranks)})


def theirs(case: Case, rank: int, seconds: float) -> Callable[[], None]:
    """The same stages on torch's engine."""
    modules = {stage: Scale() for (stage, _), lane in case.schedule.placement.items() if lane == rank}
    data, count = torch.zeros(case.microbatches, WIDTH), case.schedule.routes.num_stages
    return torch_engine(case.text, True, modules, count, data, data, total, seconds)


def medians(results: list[dict[str, list[Span]]]) -> dict[str, float]:
    """Seconds of each measurement of `body`, from the first rank's start to the last one's end."""
    return {what: median_s([result[what] for result in results]) for what in results[0]}
