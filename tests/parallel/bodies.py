"""Rank bodies: a few steps of training on a fixed layout, without the elastic manager."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainsys.comm.communicator import Communicator
from trainsys.comm.objects import broadcast_object, gather_objects
from trainsys.config import RunConfig
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.parallel.engine import DTYPES, Engine, routes_of, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import initial_state, master_dtype
from trainsys.parallel.step import Decision, decide
from trainsys.space.build import build_layout
from trainsys.space.layout import Layout, Piece
from trainsys.space.tensor import Space


def tokens_of(config: RunConfig, step: int, microbatch: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Random but reproducible data of one microbatch."""
    size, seq = config.batch.microbatch_size, config.batch.seq_len
    first = step * config.batch.global_size + microbatch * size
    rows = [np.random.default_rng(first + j).integers(0, config.model.vocab_size, seq + 1) for j in range(size)]
    ids = torch.from_numpy(np.stack(rows))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), tuple(range(first, first + size))


def train(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig], steps: int) -> list[dict[str, Any]]:
    """Train `steps` steps under each config; see `train_one` for what comes back."""
    return [train_one(rank, world_size, store, config, steps, i) for i, config in enumerate(configs)]


def train_one(rank: int, world_size: int, store: Any, config: RunConfig, steps: int, generation: int) -> dict[str, Any]:
    """One run from fresh state.

    Returns:
        losses: (loss, gradient norm) of each step, as hex; empty on a rank that the layout leaves out.
        pieces, second: owned piece -> final master, second moment.
        mirrors: piece kept for a peer -> (master, second moment) as computed here.
    """
    space, layout = layout_of(config, world_size)
    if rank not in layout.ranks:
        return {"losses": [], "pieces": {}, "second": {}, "mirrors": {}, "second_mirrors": {}}
    comm, engine = start(rank, world_size, store, config, generation)
    losses = run(comm, engine, steps)
    comm.close()

    def values(slot: str, pieces: Sequence[Piece]) -> dict[Piece, np.ndarray]:
        return {p: engine.state.view(slot, p).clone().numpy() for p in pieces}

    owned, mirrored = layout.owned(space, rank), layout.mirrored(space, rank)
    return {
        "losses": losses, "pieces": values("master", owned), "second": values("exp_avg_sq", owned),
        "mirrors": values("master", mirrored), "second_mirrors": values("exp_avg_sq", mirrored),
    }  # fmt: skip


def start(
    rank: int, world_size: int, store: Any, config: RunConfig, generation: int = 0
) -> tuple[Communicator, Engine]:
    """An engine with fresh state on a rank of the config's layout."""
    space, layout = layout_of(config, world_size)
    comm = Communicator(store, rank, "gloo", 30.0)
    routes = routes_of(config, layout)
    comm.reconfigure(generation, wanted_groups(space, layout, routes))
    device, dtype = torch.device("cpu"), master_dtype(DTYPES[config.train.dtype])
    state = initial_state(space, layout, rank, resolve(config.model), config.train.seed, dtype, device)
    engine = Engine(config, space, layout, rank, comm, state, device)
    engine.materialize()
    return comm, engine


def run(comm: Communicator, engine: Engine, steps: int) -> list[tuple[str, str]]:
    """(loss, gradient norm) of each step, as hex."""
    mesh = comm.group(engine.layout.ranks) if len(engine.layout.ranks) > 1 else None
    losses = []
    for step in range(steps):
        batch = Batch(step, {mb: tokens_of(engine.config, step, mb) for mb in engine.microbatches()})
        reports = gather_objects(mesh, engine.compute(batch))
        decision = broadcast_object(mesh, None if reports is None else decide(engine.config, reports))
        engine.apply(decision)
        engine.materialize()
        losses.append((decision.loss.hex(), decision.grad_norm.hex()))
    return losses


def mirrors_beside(rank: int, world_size: int, store: Any, config: RunConfig) -> bool:
    """Whether mirrors change while a step is computed, though nobody reads them.

    By the verdict before it; with `optim.post_validation` by one that comes in the middle.
    """
    comm, engine = start(rank, world_size, store, config)
    mesh, mirrored = comm.group(engine.layout.ranks), engine.state.slots["master"][engine.keeper.copies.held :]
    before, seen = mirrored.clone(), list[bool]()

    def verdict(step: int) -> Decision:
        report = engine.compute(Batch(step, {mb: tokens_of(config, step, mb) for mb in engine.microbatches()}))
        engine.keeper.wait(engine.pending[-1])
        reports = gather_objects(mesh, report)
        return broadcast_object(mesh, None if reports is None else decide(config, reports))

    def watch(phase: str) -> None:
        if phase == "reduce":
            if config.optim.post_validation:
                engine.apply(first)
            deadline = time.monotonic() + 10
            while torch.equal(mirrored, before) and time.monotonic() < deadline:
                time.sleep(0.001)
            seen.append(not torch.equal(mirrored, before))

    first = verdict(0)
    if config.optim.post_validation:
        engine.foresee(first.update)
    else:
        engine.apply(first)
        engine.materialize()
    engine.at = watch
    verdict(1)
    comm.close()
    return seen == [True]


def layout_of(config: RunConfig, world_size: int) -> tuple[Space, Layout]:
    parallel = config.parallel
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp * parallel.vp)
    layout = build_layout(
        parallel,
        layers,
        range(world_size),
        config.elastic.chunk,
        lambda r: r // 2,
        config.model.vocab_parts,
        config.elastic.tolerate,
    )
    return Space(tensors(resolve(config.model))), layout
