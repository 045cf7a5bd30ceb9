"""Recomputation and copies to the host as actions: the same bits, and the memory that the simulator says."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.models.geometry import resolve
from trainsys.models.registry import build
from trainsys.parallel.executor import Executor
from trainsys.parallel.kept import Copier
from trainsys.parallel.split import Deferred, split_backward
from trainsys.parallel.stage import Batch, StageRunner
from trainsys.schedule import (
    Action,
    Costs,
    Kind,
    Problem,
    Routes,
    Schedule,
    simulate,
    verify,
    with_offload,
    with_recompute,
)
from trainsys.schedule.footprint import Footprint
from trainsys.schedule.generators import generate
from trainsys.testing import RankPool

GRIDS: list[dict[str, Any]] = [
    {"pp": 4, "recompute": "stage"},
    {"pp": 4, "schedule": "zb1p", "offload": "scheduled"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "zbv", "zero": 3, "recompute": "stage"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "zbv", "zero": 3, "offload": "scheduled"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "zero": 1, "offload": "scheduled"},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "vhalf", "zero": 2, "offload": "scheduled", "recompute": "full"},
]
MODELS: dict[str, dict[str, Any]] = {
    "gpt2 tied dropout": {"num_layers": 4, "family": "gpt2", "tied": True, "dropout": 0.1},
    "mixtral": {"num_layers": 4, "family": "mixtral", "num_experts": 4, "router_aux_coef": 0.1},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_the_bits_of_one_process(ranks: RankPool, model: dict[str, Any]) -> None:
    expected = expectation(ranks, 1, run_config("float32", model))
    for got in run_all(ranks, 4, [run_config("float32", model, **grid) for grid in GRIDS]):
        assert_same_bits(got, expected)


class AtOnce(Copier):
    """Copies that are done when they begin, so that there is one order of all changes of memory."""

    def __init__(self) -> None:
        pass

    def out(self, work: Callable[[], None]) -> Future[None]:
        work()
        done = Future[None]()
        done.set_result(None)
        return done

    def back(self, work: Callable[[], None], gone: Future[None]) -> Future[None]:
        return self.out(work)


def lane_of(schedule: Schedule) -> tuple[Executor, dict[int, StageRunner], dict[int, dict[str, Tensor]]]:
    """Two runs of two layers on one lane, in one process."""
    torch.manual_seed(0)
    config = resolve(run_config("float32", {"num_layers": 4}).model)
    grads: dict[int, dict[str, Tensor]] = {}
    tokens = torch.randint(0, 64, (4, 1, 17), generator=torch.Generator().manual_seed(1))
    batch = Batch(0, {mb: (tokens[mb, :, :-1], tokens[mb, :, 1:], (mb,)) for mb in range(4)})
    runners = {}
    for stage, blocks in enumerate((range(-1, 2), range(2, 5))):
        model, deferred = build(config, blocks), Deferred()
        split_backward(model, deferred)
        names = [name for name, _ in model.named_parameters()]
        again = {a.microbatch for a in schedule.lanes[0] if a.kind is Kind.R and a.stage == stage}
        runners[stage] = StageRunner(
            model, lambda mb: (1, 16, 32), lambda mb: 16, 0, 64, None, None,
            lambda mb, made: grads.setdefault(mb, {}).update(made), {blocks: names}, deferred=deferred, again=again,
            copier=AtOnce(),
        )  # fmt: skip
        runners[stage].begin(batch)
    return Executor(schedule, 0, runners, None, {0: 0}), runners, grads


def one_lane(halves: bool) -> Schedule:
    """Every forward first; then B, or I with W two microbatches behind."""
    schedule = generate("gpipe", Problem(Routes.balanced(4, [1], 2), 2))
    if not halves:
        return schedule
    lane, left = list[Action](), list[Action]()
    for action in schedule.lanes[0]:
        lane.append(action if action.kind is Kind.F else replace(action, kind=Kind.I))
        if action.kind is Kind.B:
            left.append(replace(action, kind=Kind.W))
        if len(left) > 2:
            lane.append(left.pop(0))
    return replace(schedule, lanes=((*lane, *left),))


def measured(schedule: Schedule) -> tuple[list[int], list[int], dict[int, dict[str, Tensor]]]:
    """Bytes on the device before and after each action, and the gradients."""
    executor, runners, grads = lane_of(schedule)
    curve, changes = [0], [0]

    def watch() -> None:
        curve.append(sum(runner.resident() for runner in runners.values()))

    executor.watch = lambda action: watch()
    executor.run()
    changes += [b - a for a, b in pairwise(curve)]
    return curve, changes, grads


PASSES: dict[str, Callable[[Schedule], Schedule]] = {
    "all": lambda schedule: schedule,
    "recompute": with_recompute,
    "offload": with_offload,
}


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("keeps", PASSES)
def test_the_simulated_memory_is_the_counted_one(keeps: str, halves: bool) -> None:
    """The bytes of one microbatch are measured; those of the whole step follow from the schedule."""
    plain = one_lane(halves)
    schedule = PASSES[keeps](plain)
    verify(schedule)
    curve, changes, grads = measured(schedule)
    by_kind = {(a.stage, a.kind): change for a, change in zip(schedule.lanes[0], changes[1:], strict=True)}
    kept, inputs, until_w = [], [], []
    for stage in range(2):
        forward = by_kind[stage, Kind.F]
        again = by_kind.get((stage, Kind.R), 0)
        moved = -by_kind.get((stage, Kind.OFFLOAD), 0)
        kept.append(float(forward + again))
        inputs.append(float(forward if again else kept[-1] - moved))
        until_w.append(float(-by_kind.get((stage, Kind.W), 0)))
    footprint = Footprint(kept, until_w, inputs)
    run = simulate(schedule, Costs([1.0] * 2, [2.0] * 2))
    assert run.peak_bytes(0, footprint) == max(curve)
    steps, seen = [alive for _, alive in run.memory(0, footprint)], [b for a, b in pairwise(curve) if a != b]
    assert set(seen) <= set(steps)
    assert steps[-1] == curve[-1] == 0
    _, _, expected = measured(plain)
    for mb, named in expected.items():
        assert all(torch.equal(grad, grads[mb][name]) for name, grad in named.items())
    if keeps != "all":
        assert max(curve) < 0.6 * max(measured(plain)[0])
