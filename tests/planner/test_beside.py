"""What lies beside a search is found by trying it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trainsys.cli.main import main
from trainsys.config import RunConfig, load
from trainsys.planner.beside import reduction_fast, what_fits
from trainsys.planner.search import search

MIXTRAL = [
    "configs/model/mixtral-8x7b.yaml", "configs/cluster/dgx-h100-4.yaml", "cluster.nodes=2", "train.dtype=bfloat16",
    "batch.global_size=64", "batch.seq_len=4096",
]  # fmt: skip


def test_the_fast_reduction_is_noted_where_it_is_much_faster(small: RunConfig) -> None:
    """Where memory is short, a layout with fewer ranks per replica fits without the sums of the tree."""

    def limited(memory_gib: float) -> RunConfig:
        batch = replace(small.batch, global_size=16, microbatch_size=1)
        device = replace(small.cluster.device, memory_gib=memory_gib)
        return replace(small, batch=batch, cluster=replace(small.cluster, device=device))

    tight, ample = limited(0.05), limited(1.0)
    report = search(tight)
    fast = reduction_fast(tight, report, [])
    assert fast is not None
    assert fast.parallel.reduction == "fast"
    assert fast.step_s < report.plans[0].step_s / 1.1
    assert reduction_fast(tight, replace(report, search_s=3.0), []) is None
    assert reduction_fast(ample, search(ample), []) is None


def test_what_fits_instead_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    config = load([*MIXTRAL, "cluster.device.memory_gib=140", "batch.microbatch_size=1"])
    *_, size, fast = what_fits(config, [], False).split("; ")
    assert fast.startswith("parallel.reduction=fast fits: dp")
    knob = size.partition(" ")[0]
    assert knob == "batch.microbatch_size=4"
    assert search(load([*MIXTRAL, "cluster.device.memory_gib=140", knob])).plans
    assert main(["plan", *MIXTRAL, "cluster.device.memory_gib=100", "batch.microbatch_size=1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "fits:" not in said  # a change of layout needs more than that
    assert "reduction=fast" not in said


def test_the_note_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    args = [
        "configs/model/llama-small.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=1",
        "batch.global_size=16", "batch.microbatch_size=1", "cluster.device.memory_gib=0.05", "--out",
        str(tmp_path / "p.yaml"),
    ]  # fmt: skip
    assert main(["plan", *args]) == 0
    assert "parallel.reduction=fast (bits then depend on the layout)" in capsys.readouterr().out
    assert main(["plan", *args, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reduction_fast"]["parallel"]["reduction"] == "fast"
    assert main(["plan", *args, "parallel.reduction=canonical", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reduction_fast"] is None
