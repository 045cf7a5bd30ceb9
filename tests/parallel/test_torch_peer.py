"""Schedules of ours on torch's engine and of torch's on ours: the gradients of one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.pipelining import schedules as peer

from benchmarks._torch_runtime import torch_engine, world
from benchmarks._torch_schedules import CLASSES, FOLDED, as_text, as_torch_says, torch_csv, vp_of
from tests.parallel.runs import assert_same_bits, expectation, run_all, run_config
from trainsys.schedule import GENERATORS, Routes, build, export_csv, import_csv
from trainsys.space.runs import FOLDED as OUR_FOLDED
from trainsys.testing import RankPool

P, M = 4, 8
MODEL: dict[str, Any] = {"num_layers": 8, "tied": True}


def module(stage: int) -> nn.Module:
    torch.manual_seed(stage)
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(99)
    return torch.randn(M, 6, dtype=torch.float64), torch.randn(M, 6, dtype=torch.float64)


def loss(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().sum()


def on_torch(rank: int, world_size: int, store: Any, runs: Sequence[tuple[str, bool]]) -> list[dict[int, list[Tensor]]]:
    """Per run (a file, and whether it has comms) each own stage's gradients."""
    found = []
    with world(store, rank, world_size):
        for text, with_comms in runs:
            one = import_csv(text, "x")
            count = one.routes.num_stages
            own = {s: module(s) for s in range(count) if one.placement[s, 0] == rank}
            torch_engine(text, with_comms, own, count, *data(), loss)()
            found.append({s: [p.grad for p in part.parameters()] for s, part in own.items()})
    return found


def expected(count: int) -> list[list[Tensor]]:
    """Gradients of each of `count` stages in one process."""
    parts = [module(s) for s in range(count)]
    loss(nn.Sequential(*parts)(data()[0]), data()[1]).backward()
    return [[p.grad for p in part.parameters()] for part in parts]  # type: ignore[misc]


def test_our_schedules_run_on_torchs_engine(ranks: RankPool) -> None:
    built = []
    for name in GENERATORS:
        vp = 2 if name in OUR_FOLDED or name == "interleaved" else 1
        built.append(build(name, Routes.balanced(M, [1] * P, vp, name in OUR_FOLDED), vp))
    runs = [(export_csv(schedule, comms), comms) for schedule in built for comms in (False, True)]
    results = ranks.run(on_torch, P, runs)
    for number, (text, _) in enumerate(runs):
        count = import_csv(text, "x").routes.num_stages
        got = {stage: grads for result in results for stage, grads in result[number].items()}
        for stage, grads in enumerate(expected(count)):
            torch.testing.assert_close(got[stage], grads, rtol=1e-10, atol=1e-12)


def test_torchs_schedules_run_on_our_engine(ranks: RankPool, tmp_path: Path) -> None:
    """Whole steps with ZeRO and two replicas too: the bits of one process."""
    configs = []
    for name in CLASSES:
        grid: dict[str, Any] = {"vp": vp_of(name), "placement": "v" if name in FOLDED else "auto"}
        for format, text in zip(("plain", "comms"), torch_csv(name, P, M), strict=True):
            path = tmp_path / f"{name}-{format}.csv"
            path.write_text(text)
            configs.append(run_config("float64", MODEL, pp=P, schedule=str(path), **grid))
    path = tmp_path / "two.csv"
    path.write_text(torch_csv("ZBV", 2, M // 2)[1])
    configs.append(run_config("float64", MODEL, pp=2, dp=2, vp=2, zero=3, placement="v", schedule=str(path)))
    one = expectation(ranks, 1, run_config("float64", MODEL), steps=1)
    for got in run_all(ranks, P, configs, steps=1):
        assert_same_bits(got, one)


def test_the_order_that_torch_gives_for_1f1b_is_refused() -> None:
    """Its last rank starts at microbatch 1 and ends at m (torch 2.13); its own engine does not follow it."""
    orders = as_torch_says("1F1B", P, M)
    if orders[P - 1][0].microbatch_index == 0:
        pytest.skip("this torch gives the right order")
    with pytest.raises(ValueError, match=r"^1f1b\.csv: lane 3: 3F0 is missing"):
        import_csv(as_text(orders), "1f1b.csv")
    with pytest.raises(AssertionError, match="without first running Forward"):
        peer._validate_schedule({r: [a for a in row if a.is_compute_op] for r, row in orders.items()}, P, P, M)
