"""Emulated training: ranks, messages and reduction are real, computing is sleep, and nothing is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import tiny
from trainsys.cli.main import main

SPLIT_V = (
    "model.num_layers=8", "parallel.dp=1", "parallel.pp=4", "parallel.vp=2", "parallel.schedule=zbv",
    "batch.global_size=8", "parallel.zero=0", "train.steps=2", "train.emulate=true", "train.emulate_scale=60",
)  # fmt: skip


def test_a_v_with_split_backwards_runs_as_predicted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny(run, *SPLIT_V), "--json"]) == 0
    shown = capsys.readouterr()
    assert "emulated: stages sleep" in shown.err
    assert "loss -" in shown.err
    outcome = json.loads(shown.out)
    assert (outcome["steps"], outcome["loss"], outcome["checkpoint"], outcome["emulated"]) == (2, None, "", True)
    assert not (run / "checkpoints").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["loss"], line["grad_norm_hex"], line["emulated"]) for line in lines] == [(None, None, True)] * 2

    comparison = outcome["comparison"]
    assert comparison["step_error"] < 0.01  # nobody computes before its input is there
    assert comparison["timeline_error"] < 0.5  # a busy machine is late
    slices = [e for e in json.loads((run / "trace.json").read_text())["traceEvents"] if e.get("cat") == "compute"]
    ends = [{e["name"]: (e["ts"] + e["dur"]) * 1e-6 for e in slices if e["pid"] == pid} for pid in (0, 1)]
    assert ends[0].keys() == ends[1].keys()
    assert len(ends[0]) == 3 * 8 * 8  # F, I, W of 8 microbatches in 8 runs of layers
    assert all(ends[1][name] > 0.99 * ends[0][name] - 0.002 for name in ends[0])
