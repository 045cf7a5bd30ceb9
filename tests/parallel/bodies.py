"""Rank bodies: a few steps of training on a fixed layout, without the elastic manager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from trainsys.comm.communicator import Communicator
from trainsys.config import RunConfig
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.parallel.engine import DTYPES, Engine, num_microbatches, wanted_groups
from trainsys.parallel.stage import Batch
from trainsys.parallel.state import initial_state, master_dtype
from trainsys.parallel.step import Report, decide
from trainsys.schedule.routes import Routes
from trainsys.space.build import build_layout
from trainsys.space.tensor import Space


def tokens_of(config: RunConfig, step: int, microbatch: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Random but reproducible data of one microbatch."""
    size, seq = config.batch.microbatch_size, config.batch.seq_len
    first = step * config.batch.global_size + microbatch * size
    rows = [np.random.default_rng(first + j).integers(0, config.model.vocab_size, seq + 1) for j in range(size)]
    ids = torch.from_numpy(np.stack(rows))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), tuple(range(first, first + size))


def train(rank: int, world_size: int, store: Any, configs: Sequence[RunConfig], steps: int) -> list[dict[str, Any]]:
    """Train `steps` steps under each config; returns losses and, gathered by name, this rank's final masters."""
    return [_train_one(rank, world_size, store, config, steps, i) for i, config in enumerate(configs)]


def _train_one(
    rank: int, world_size: int, store: Any, config: RunConfig, steps: int, generation: int
) -> dict[str, Any]:
    parallel = config.parallel
    space = Space(tensors(resolve(config.model)))
    layers = parallel.stage_layers or split_layers(config.model.num_layers, parallel.pp)
    layout = build_layout(parallel, layers, range(world_size), config.elastic.chunk, lambda r: r // 2)
    if rank not in layout.ranks:
        return {"losses": [], "pieces": {}}
    comm = Communicator(store, rank, "gloo", 30.0)
    routes = Routes.balanced(num_microbatches(config), layout.replicas)
    comm.reconfigure(generation, wanted_groups(space, layout, routes))
    device, dtype = torch.device("cpu"), DTYPES[config.train.dtype]
    model = resolve(config.model)
    state = initial_state(space, layout, rank, model, config.train.seed, master_dtype(dtype), device)
    engine = Engine(config, space, layout, rank, comm, state, device)
    engine.materialize()
    losses = []
    for step in range(steps):
        batch = Batch(step, {mb: tokens_of(config, step, mb) for mb in engine.microbatches()})
        report = engine.compute(batch)
        decision = decide(config, _all_reports(comm, layout.ranks, rank, store, report, f"{generation}/{step}"))
        engine.apply(decision)
        if layout.zero:
            engine.materialize()
        else:
            engine.materialize()
        losses.append((decision.loss.hex(), decision.grad_norm.hex()))
    comm.close()
    pieces = {p: state.view("master", p).clone().numpy() for p in layout.owned(space, rank)}
    mirrors = {p: state.view("exp_avg_sq", p).clone().numpy() for p in layout.mirrored(space, rank)}
    second = {p: state.view("exp_avg_sq", p).clone().numpy() for p in layout.owned(space, rank)}
    return {"losses": losses, "pieces": pieces, "mirrors": mirrors, "second": second}


def _all_reports(
    comm: Communicator, members: Sequence[int], rank: int, store: Any, report: Report, key: str
) -> list[Report]:
    import pickle

    store.set(f"{key}/{rank}", pickle.dumps(report))
    return [pickle.loads(store.get(f"{key}/{r}")) for r in members]
