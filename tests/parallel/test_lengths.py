"""Microbatches of several lengths: every rank knows each message's shape beforehand, and the bits are those of one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.parallel import bodies
from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.config import RunConfig
from trainsys.parallel.stage import Batch
from trainsys.planner.check import check_layout
from trainsys.planner.step_schedule import scales
from trainsys.planner.timeline import timeline
from trainsys.testing import RankPool

LENGTHS = (16, 4, 10)


def with_lengths(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, batch=dataclasses.replace(config.batch, seq_lens=LENGTHS))


GRIDS: list[dict[str, Any]] = [
    {"pp": 4},
    {"pp": 2, "dp": 2, "vp": 2, "schedule": "zbv", "zero": 1},
    {"pp": 2, "stage_replicas": (1, 3), "zero": 2},
    {"pp": 2, "dp": 2, "zero": 3, "recompute": "stage"},
]


def test_the_bits_of_one_process(ranks: RankPool) -> None:
    model = {"num_layers": 4, "tied": True}
    expected = expectation(ranks, 1, with_lengths(run_config("float32", model)))
    for got in run_all(ranks, 4, [with_lengths(run_config("float32", model, **grid)) for grid in GRIDS]):
        assert_same_bits(got, expected)
    assert expected.losses != expectation(ranks, 1, run_config("float32", model)).losses


def test_under_sequence_parallelism(ranks: RankPool) -> None:
    fixed = {"tp": 2, "sequence_parallel": True}
    expected = expectation(ranks, 2, with_lengths(run_config(**fixed)))
    (got,) = run_all(ranks, 4, [with_lengths(run_config(pp=2, **fixed))])
    assert_same_bits(got, expected)


def shapes(rank: int, world_size: int, store: Any, config: RunConfig) -> dict[int, tuple[int, ...]]:
    """What a rank receives of each microbatch."""
    comm, engine = bodies.start(rank, world_size, store, config)
    seen: dict[int, tuple[int, ...]] = {}
    (runner,) = engine.runners.values()
    boundary = runner.boundary

    def watched(microbatch: int) -> torch.Tensor:
        buffer = boundary(microbatch)
        seen[microbatch] = tuple(buffer.shape)
        return buffer

    runner.boundary = watched  # type: ignore[method-assign]
    engine.compute(Batch(0, {mb: bodies.tokens_of(config, 0, mb) for mb in engine.microbatches()}))
    comm.close()
    return seen


def test_messages_are_as_short_as_their_microbatch(ranks: RankPool) -> None:
    for seen in ranks.run(shapes, 2, with_lengths(run_config(pp=2))):
        assert seen == {mb: (1, LENGTHS[mb % 3], 32) for mb in range(8)}


def test_the_simulated_step_is_as_long_as_its_microbatches() -> None:
    config = with_lengths(run_config(pp=1))
    shares = scales(config)
    assert shares is not None
    assert shares[0] == 1.0 and LENGTHS[1] / 16 * 0.8 < shares[1] < LENGTHS[1] / 16  # attention is quadratic
    whole, ragged = timeline(run_config(pp=1)), timeline(config)
    assert ragged.run.busy_s[0] == pytest.approx(whole.run.busy_s[0] * sum(shares) / 8)
    assert config.batch.tokens == 16 + 4 + 10 + 16 + 4 + 10 + 16 + 4


def test_lengths_that_cannot_be_are_refused() -> None:
    config = run_config(cp=2)
    with pytest.raises(ValueError, match=r"batch.seq_lens with parallel.cp=2: .*set parallel.cp=1"):
        check_layout(with_lengths(config))
    config = run_config(tp=4, sequence_parallel=True)
    with pytest.raises(ValueError, match=r"batch.seq_lens has 10, which parallel.tp=4 does not divide; set 8 or"):
        check_layout(with_lengths(config))
