"""Tiny runs under many layouts, and their comparison with another run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.parallel import bodies
from trainsys.config import BatchConfig, ElasticConfig, ModelConfig, OptimConfig, ParallelConfig, RunConfig, TrainConfig
from trainsys.space.layout import Piece
from trainsys.testing import RankPool

STEPS = 2  # a first one, and one with other weights, moments and learning rate


def run_config(
    dtype: str = "float32", model: dict[str, Any] | None = None, sequences: int = 8, **parallel: Any
) -> RunConfig:
    """`sequences` of 16 tokens in as many microbatches on a model whose sizes 8 divides, in chunks of odd size."""
    sizes: dict[str, Any] = {
        "vocab_size": 64, "dim": 32, "num_layers": 2, "num_heads": 8, "num_kv_heads": 8, "ffn_dim": 64,
        "max_seq_len": 16,
    }  # fmt: skip
    return RunConfig(
        model=ModelConfig(**(sizes | (model or {}))),
        batch=BatchConfig(sequences, 1, 16),
        parallel=ParallelConfig(**parallel),
        optim=OptimConfig(warmup_steps=2),
        train=TrainConfig(dtype=dtype),  # type: ignore[arg-type]
        elastic=ElasticConfig(chunk=211),
    )


class Outcome:
    """What all ranks of one run ended with."""

    def __init__(self, config: RunConfig, parts: Sequence[dict[str, Any]]) -> None:
        self.config, self.losses = config, parts[0]["losses"]
        assert all(p["losses"] in ([], self.losses) for p in parts), "ranks disagree on the losses"
        self.pieces: dict[Piece, np.ndarray] = {k: v for p in parts for k, v in p["pieces"].items()}
        self.second: dict[Piece, np.ndarray] = {k: v for p in parts for k, v in p["second"].items()}
        assert len(self.pieces) == sum(len(p["pieces"]) for p in parts), "a piece has two owners"
        self.mirrored = 0
        for part in parts:
            for piece, value in part["mirrors"].items():
                assert np.array_equal(value, self.pieces[piece]), f"mirror of {piece} differs"
                assert np.array_equal(part["second_mirrors"][piece], self.second[piece]), f"mirror of {piece} differs"
                self.mirrored += 1

    def parameters(self) -> dict[str, np.ndarray]:
        """Whole tensors put together from their owners' pieces; copies within a team must agree."""
        space, layout = bodies.layout_of(self.config, 8)
        whole = {}
        for ordinal, tensor in enumerate(space.tensors):
            shape = tensor.local_shape(layout.tp)
            shards = []
            for shard in range(layout.tp):
                own = sorted(p for p in self.pieces if (p.tensor, p.shard) == (ordinal, shard))
                shards.append(np.concatenate([self.pieces[p] for p in own]).reshape(shape))
            first = [shards[tensor.first_copy(layout.tp, i)] for i in range(layout.tp)]
            assert all(map(np.array_equal, shards, first)), f"{tensor.name} differs within a team"
            different = shards[:: tensor.copies(layout.tp)]
            whole[tensor.name] = different[0] if tensor.split is None else np.concatenate(different, axis=tensor.split)
            assert whole[tensor.name].shape == tensor.shape
        return whole


def run_all(ranks: RankPool, world_size: int, configs: Sequence[RunConfig], steps: int = STEPS) -> list[Outcome]:
    results = ranks.run(bodies.train, world_size, list(configs), steps, timeout_s=110)
    return [Outcome(config, [r[i] for r in results]) for i, config in enumerate(configs)]


def expectation(ranks: RankPool, world_size: int, config: RunConfig, steps: int = STEPS) -> Outcome:
    """A run to compare with; what several tests compare with is trained once."""
    wanted = (world_size, config, steps)
    if wanted not in _KNOWN:
        (_KNOWN[wanted],) = run_all(ranks, world_size, [config], steps)
    return _KNOWN[wanted]


_KNOWN: dict[tuple[int, RunConfig, int], Outcome] = {}


def assert_same_bits(got: Outcome, expected: Outcome) -> None:
    """Losses, gradient norms, masters and second moments, bit for bit."""
    where = got.config.parallel
    assert got.losses == expected.losses, where
    assert got.pieces.keys() == expected.pieces.keys()
    for piece, value in expected.pieces.items():
        assert np.array_equal(got.pieces[piece], value), (where, piece)
        assert np.array_equal(got.second[piece], expected.second[piece]), (where, piece)


def assert_close(got: Outcome, expected: Outcome, tolerance: float) -> None:
    """Losses, norms and each tensor of parameters within `tolerance`, relative to the largest element.

    Left out are key biases: a softmax does not change when all its scores move together, so their gradient is zero but
    for rounding, and AdamW blows the rounding up to full steps.
    """
    where = got.config.parallel
    for ours, theirs in zip(got.losses, expected.losses, strict=True):
        for a, b in zip(map(float.fromhex, ours), map(float.fromhex, theirs), strict=True):
            assert abs(a - b) <= tolerance * abs(b), (where, a, b)
    reference = expected.parameters()
    for name, value in got.parameters().items():
        if name.endswith("attention.wk.bias"):
            continue
        off = np.abs(value - reference[name]).max() / np.abs(reference[name]).max()
        assert off <= tolerance, (where, name, off)
