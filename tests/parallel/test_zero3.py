"""ZeRO-3: the bits of the rest, with no more than two blocks' weights on a rank."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from tests.parallel import bodies
from tests.parallel.runs import assert_close, assert_same_bits, expectation, run_all, run_config
from trainsys.comm.group import CommError
from trainsys.config import RunConfig
from trainsys.parallel.engine import Engine
from trainsys.parallel.stage import Batch
from trainsys.testing import RankPool

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2 tied dropout": ("float32", {"num_layers": 4, "family": "gpt2", "tied": True, "dropout": 0.1}),
    "llama bfloat16": ("bfloat16", {"num_layers": 4, "num_kv_heads": 2}),
}

FOUR_RANKS: list[dict[str, Any]] = [
    {"dp": 2},
    {"dp": 4},
    {"dp": 3, "recompute": "full"},
    {"dp": 2, "pp": 2},
    {"dp": 2, "pp": 2, "schedule": "gpipe"},
    {"pp": 2, "stage_replicas": (2, 1)},
    {"pp": 2, "stage_replicas": (1, 3), "stage_layers": (3, 1), "recompute": "full"},
    {"pp": 3, "stage_replicas": (1, 2, 1), "schedule": "gpipe"},
]


@pytest.mark.parametrize("name", MODELS)
def test_the_bits_of_one_process(ranks: RankPool, name: str) -> None:
    dtype, model = MODELS[name]
    expected = expectation(ranks, 1, run_config(dtype, model))
    configs = [run_config(dtype, model, zero=3, **grid) for grid in FOUR_RANKS]
    for got in run_all(ranks, 4, configs):
        assert_same_bits(got, expected)


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_the_bits_of_its_tensor_parallel_family(ranks: RankPool, sequence_parallel: bool) -> None:
    model = {"num_layers": 2, "family": "gpt2", "tied": True, "dropout": 0.1}
    fixed = {"tp": 2, "sequence_parallel": sequence_parallel}
    expected = expectation(ranks, 2, run_config("float32", model, **fixed))
    grids: list[dict[str, Any]] = [{"dp": 2, "recompute": "full"}, {"pp": 2, "stage_replicas": (1, 2)}]
    for got in run_all(ranks, 6, [run_config("float32", model, zero=3, **grid, **fixed) for grid in grids]):
        assert_same_bits(got, expected)


def test_one_process_in_float64(ranks: RankPool) -> None:
    model = {"tied": True, "num_kv_heads": 4}
    expected = expectation(ranks, 1, run_config("float64", model))
    grids: list[dict[str, Any]] = [
        {"dp": 4},
        {"dp": 2, "pp": 2, "schedule": "gpipe"},
        {"dp": 2, "tp": 2, "sequence_parallel": True},
        {"dp": 4, "reduction": "fast"},
    ]
    for got in run_all(ranks, 4, [run_config("float64", model, zero=3, **grid) for grid in grids]):
        assert_close(got, expected, 1e-10)


def whole_blocks(engine: Engine) -> list[int]:
    """The blocks all of whose parameters have their memory; those with a part of it are an error."""
    filled: dict[int, set[bool]] = {}
    for name, p in engine.params.items():
        nbytes = p.untyped_storage().nbytes()
        assert nbytes in (0, p.numel() * p.element_size())
        filled.setdefault(block_of(engine.config, name), set()).add(nbytes > 0)
    assert all(len(kinds) == 1 for kinds in filled.values()), filled
    return [block for block, kinds in filled.items() if kinds == {True}]


def block_of(config: RunConfig, name: str) -> int:
    top, *rest = name.split(".")
    return int(rest[0]) if top == "layers" else -1 if top == "tok_embeddings" else config.model.num_layers


def watched(rank: int, world_size: int, store: Any, config: RunConfig) -> dict[str, Any]:
    """Two steps, and which blocks are whole whenever one is used.

    Returns:
        forward, backward: (block that computes, whole blocks) as modules are called and as gradients are made.
        idle: whole blocks after each step.
        peak: as the engine counts it, arriving ones included.
        names: of the rank's parameters.
    """
    comm, engine = bodies.start(rank, world_size, store, config)
    seen: dict[str, Any] = {"forward": [], "backward": [], "idle": []}

    def note(kind: str, block: int) -> None:
        seen[kind].append((block, whole_blocks(engine)))

    (runner,) = engine.runners.values()
    for index, layer in runner.model.layers.items():
        layer.register_forward_pre_hook(lambda *_, block=int(index): note("forward", block))
    for name, p in engine.params.items():
        block = block_of(config, name)
        p.register_post_accumulate_grad_hook(lambda _, block=block: note("backward", block))
    for _ in range(2):
        bodies.run(comm, engine, 1)
        seen["idle"].append(whole_blocks(engine))
    comm.close()
    assert engine.weights is not None
    return seen | {"peak": engine.weights.peak, "names": list(engine.params)}


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_zero3_frees_no_weight_that_a_backward_still_needs(ranks: RankPool, recompute: str) -> None:
    """Peers lose gradients where a block is freed between its forward and what is left of its backward.

    A backward is not split here: its block is whole from its first gradient to its last, and freed after it.
    """
    config = run_config("float32", {"num_layers": 3, "tied": True}, dp=2, zero=3, recompute=recompute)
    for seen in ranks.run(watched, 2, config):
        assert seen["forward"] == [(block, [block]) for _ in range(2 * 4) for block in range(3)]
        made = [block for block, _ in seen["backward"]]
        assert len(made) == 2 * 4 * len(seen["names"]), "every parameter has a gradient each time"
        assert all(whole == [block] for block, whole in seen["backward"])
        assert seen["idle"] == [[], []]
        assert seen["peak"] == 2


@pytest.mark.parametrize(
    "grid",
    [{"dp": 4}, {"dp": 2, "pp": 2}, {"dp": 2, "pp": 2, "schedule": "gpipe"}, {"pp": 2, "stage_replicas": (3, 1)}],
    ids=str,
)
def test_two_blocks_are_the_most(ranks: RankPool, grid: dict[str, Any]) -> None:
    """One whole and one arriving; what has no other replica to come from stays."""
    config = run_config("float32", {"num_layers": 4}, zero=3, **grid)
    layout = bodies.layout_of(config, 4)[1]
    for rank, seen in enumerate(ranks.run(watched, 4, config)):
        stage = layout.stages[layout.where(rank)[0]]
        resident = list(range(*stage.spans[0])) if len(stage.teams) == 1 else []
        assert seen["peak"] == (0 if resident else 2)
        assert seen["idle"] == [resident] * 2
        assert seen["backward"]
        for block, whole in seen["forward"] + seen["backward"]:
            assert whole == (resident or [block])


def abandoned(rank: int, world_size: int, store: Any, config: RunConfig) -> tuple[int, int]:
    """Rank 1 never begins the step, and rank 0 aborts it.

    Returns:
        serving and receiving threads of rank 0 while it waits, and a moment after the abort.
    """
    comm, engine = bodies.start(rank, world_size, store, config)

    def busy() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith(("weights-", "from-"))]

    during = 0

    def abort() -> None:
        nonlocal during
        during = len(busy())
        comm.abort(0)

    if rank == 0:
        threading.Timer(0.5, abort).start()
        with pytest.raises(CommError, match="abort"):
            engine.compute(Batch(0, {mb: bodies.tokens_of(config, 0, mb) for mb in engine.microbatches()}))
    else:
        group = comm.group(engine.layout.ranks)
        with pytest.raises(CommError):
            group.wait(group.irecv(torch.empty(1), 0, 7))
    for thread in busy():
        thread.join(5.0)
    left = len(busy())
    comm.close()
    return during, left


def test_the_threads_of_an_abandoned_step_end(ranks: RankPool) -> None:
    results = ranks.run(abandoned, 2, run_config("float32", dp=2, zero=3))
    assert results == [(2, 0), (0, 0)]
