"""A tour of layouts on real ranks, one step on each: the loss goes on with the bits of a run that never moved."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.parallel.bodies import layout_of, tokens_of
from tests.parallel.runs import expectation, run_config
from trainsys.comm.communicator import Communicator
from trainsys.comm.objects import broadcast_object, gather_objects
from trainsys.config import RunConfig
from trainsys.elastic.census import check_census, take_census
from trainsys.elastic.transit import run_transition
from trainsys.models.geometry import resolve
from trainsys.parallel.engine import DTYPES, Engine, routes_of, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import FlatState, initial_state, master_dtype
from trainsys.parallel.step import decide
from trainsys.space.layout import Layout
from trainsys.testing import RankPool

CPU = torch.device("cpu")
MODEL = {"num_layers": 4, "tied": True, "num_kv_heads": 2}
ONE: list[dict[str, Any]] = [  # tp 1
    *({"dp": dp, "zero": zero} for dp in (1, 2, 3, 5, 8) for zero in (0, 1)),
    *({"dp": 2, "pp": pp, "zero": zero, "schedule": "gpipe"} for pp in (2, 4) for zero in (0, 2)),
    {"pp": 4}, {"dp": 8, "zero": 2}, {"dp": 4, "pp": 2, "zero": 2, "recompute": "full"},
    {"pp": 2, "stage_replicas": (3, 5), "stage_layers": (3, 1), "zero": 1},
    {"pp": 3, "stage_replicas": (1, 4, 2), "stage_layers": (1, 1, 2)},
    {"pp": 2, "stage_replicas": (6, 1), "zero": 2}, {"dp": 5, "zero": 3},
    {"pp": 3, "stage_replicas": (1, 4, 2), "stage_layers": (1, 1, 2), "zero": 3, "schedule": "gpipe"},
]  # fmt: skip
TWO: list[dict[str, Any]] = [  # tp 2
    {}, {"dp": 2}, {"dp": 4, "zero": 1}, {"dp": 2, "zero": 2}, {"pp": 2}, {"pp": 4, "schedule": "gpipe"},
    {"dp": 2, "pp": 2, "zero": 1}, {"pp": 2, "stage_replicas": (1, 3), "stage_layers": (1, 3)},
    {"dp": 3, "zero": 1, "recompute": "full"}, {"dp": 4, "zero": 3},
]  # fmt: skip


EXPERTS: list[dict[str, Any]] = [
    {"dp": 8, "ep": 4, "zero": 1}, {"dp": 4, "ep": 2}, {"dp": 8, "ep": 2, "zero": 3}, {"dp": 4, "ep": 4}, {},
    {"dp": 3, "zero": 1}, {"dp": 4, "pp": 2, "ep": 2, "zero": 2}, {"pp": 2, "stage_replicas": (5, 3)},
    {"dp": 4, "pp": 2, "vp": 2, "ep": 4, "schedule": "interleaved"}, {"pp": 4, "zero": 1, "ep": 2, "dp": 2},
    {"dp": 2, "pp": 2, "vp": 2, "schedule": "interleaved", "zero": 3}, {"dp": 2, "vp": 4, "schedule": "gpipe"},
]  # fmt: skip


def tour(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig]) -> list[tuple[str, str] | None]:
    """Step i on the layout of ``configs[i]``, its state moved there from the one before and counted.

    Returns:
        (loss, gradient norm) of each step, as hex; None where the layout leaves this rank out.
    """
    everyone, losses = tuple(range(world_size)), list[tuple[str, str] | None]()
    comm = Communicator(store, rank, "gloo", 30.0)
    src: Layout | None = None
    state: FlatState | None = None
    for step, config in enumerate(configs):
        space, dst = layout_of(config, world_size)
        routes, dtype = routes_of(config, dst), DTYPES[config.train.dtype]
        comm.reconfigure(step, [everyone, *wanted_groups(space, dst, routes)])
        group, old = comm.group(everyone), state
        if src is None:
            state = FlatState((), master_dtype(dtype), CPU)
            if rank in dst.ranks:
                model = resolve(config.model)
                state = initial_state(space, dst, rank, model, config.train.seed, master_dtype(dtype), CPU)
        else:
            nodes = {r: r // 2 for r in everyone}
            state, _ = run_transition(space, src, dst, rank, src.ranks, nodes, old, group, master_dtype(dtype), CPU)
        before = old if src is not None and rank in src.ranks else None
        alive = src.ranks if src is not None else ()
        reports = gather_objects(group, take_census(space, rank, src, alive, before, dst, state, step))
        if reports is not None:
            check_census(space, dict(enumerate(reports)), src is not None, step)
        losses.append(None)
        if rank in dst.ranks:
            engine = Engine(config, space, dst, rank, comm, state, CPU)
            engine.materialize()
            batch = Batch(step, {mb: tokens_of(config, step, mb) for mb in engine.microbatches()})
            mesh = comm.group(dst.ranks) if len(dst.ranks) > 1 else None
            told = gather_objects(mesh, engine.compute(batch))
            decision = broadcast_object(mesh, None if told is None else decide(config, told))
            engine.apply(decision)
            losses[-1] = (decision.loss.hex(), decision.grad_norm.hex())
        src = dst
    comm.close()
    return losses


CUT: list[dict[str, Any]] = [
    {"dp": 3, "zero": 1}, {"cp": 2, "dp": 2, "pp": 2, "zero": 1}, {"cp": 2, "tp": 2, "sequence_parallel": True},
    {"cp": 3, "zero": 3}, {"dp": 5, "zero": 2},
]  # fmt: skip


@pytest.mark.parametrize(
    ("tp", "model", "grids"),
    [(1, MODEL, ONE), (2, MODEL, TWO), (1, MODEL | {"family": "mixtral", "num_experts": 4}, EXPERTS)],
    ids=["tp1", "tp2", "experts"],
)
def test_the_loss_does_not_notice_the_tour(
    ranks: RankPool, tp: int, model: dict[str, Any], grids: list[dict[str, Any]]
) -> None:
    order = random.Random(f"tour/{tp}").sample(grids, len(grids))
    sequences = max(grid.get("dp", 1) for grid in order)
    still = expectation(ranks, tp, run_config("float32", model, sequences, tp=tp), steps=len(order))
    configs = [run_config("float32", model, sequences, tp=tp, **grid) for grid in order]
    results = ranks.run(tour, 8, configs, timeout_s=110)
    for step, expected in enumerate(still.losses):
        assert {r[step] for r in results} - {None} == {expected}, (step, order[step])


def test_a_tour_through_cut_sequences(ranks: RankPool) -> None:
    """Whole sequences, cut ones, whole ones again: in float64 the loss is the same but for rounding."""
    still = expectation(ranks, 1, run_config("float64", MODEL), steps=len(CUT))
    results = ranks.run(tour, 8, [run_config("float64", MODEL, **grid) for grid in CUT], timeout_s=110)
    for step, expected in enumerate(still.losses):
        (told,) = {r[step] for r in results} - {None}
        for ours, theirs in zip(told, expected, strict=True):
            assert float.fromhex(ours) == pytest.approx(float.fromhex(theirs), rel=1e-10), (step, CUT[step])
