"""The benchmark of skipping, small; and what it says of gradients, exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import _skip_train
from trainsys.cli.main import main
from trainsys.planner.skip.scale import gradient_scales


def test_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ["--nodes", "8", "--stages", "4", "--visits", "3", "--per-home", "3", "--evaluations", "60"]
    picture = tmp_path / "skip.png"
    assert main(["bench", "skip", "--json", "--seeds", "3", "--picture", str(picture), *small]) == 0
    said = json.loads(capsys.readouterr().out)
    (row,) = said["rows"]
    assert row["bound_s"] <= row["ours_s"] <= min(row["greedy_s"], row["random_s"])
    assert said["over_ours"]["random_s"] == pytest.approx(row["random_s"] / row["ours_s"])
    assert len(row["paths"]) == 6
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_scales_make_sums_means_over_visitors() -> None:
    visits = [(0, 1, 3), (0, 3, 2), (0, 1, 2), (0, 1, 3)]
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(len(visits), dtype=torch.float64)
    for stage, scale in enumerate(gradient_scales(visits, 5)):
        losses = [(weight[stage] ** 2) * x for x, path in zip(inputs, visits, strict=True) if stage in path]
        if not losses:
            assert scale == 0
            continue
        (through_all,) = torch.autograd.grad(sum(losses) / len(visits), weight, retain_graph=True)
        (through_visitors,) = torch.autograd.grad(torch.stack(losses).mean(), weight, retain_graph=True)
        torch.testing.assert_close(through_all * scale, through_visitors)


def test_a_skipping_model_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of the layers skipped by the rules: the whole model, unscaled or scaled, has learnt on held-out text."""
    for name, value in {"LAYERS": 4, "DIM": 32, "SEQ_LEN": 32, "_HELD_OUT": 4, "_TEXT": 60_000}.items():
        monkeypatch.setattr(_skip_train, name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = {(name, scaled, share): route for share, name, scaled, route in _skip_train.ways(0, 4)}
    route = ways["ruled", True, 0.5]
    assert all(len(path) == 3 for path in route(0))
    assert route(0) == route(0) != route(1)
    plain, scaled = (_skip_train.train(route, scaled, steps=10) for scaled in (False, True))
    assert plain != scaled
    for losses in (plain, scaled):
        assert losses[-1] < losses[0] < 5.6, "ln 256 = 5.5 is what knows nothing"
        assert losses[-1] < 5.0
