"""The benchmark of the search, on a cluster of sixteen."""

from __future__ import annotations

import json

import pytest

from benchmarks.search import CASES
from trainsys.cli.main import main
from trainsys.config import load
from trainsys.models.geometry import num_params


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["cluster.nodes=2", "model.num_layers=8", "batch.global_size=16"]
    assert main(["bench", "search", "--cases", "175b", "--json", "--set", *small]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["case"], row["ranks"]) == ("175b", 16)
    assert 0 < row["simulated"] < row["fitting"] < row["legal"]
    assert 0 < row["seconds"] < row["total_s"]
    assert row["rss_mib"] > 20, "numpy alone takes that"
    model = load(["configs/model/gpt3-175b.yaml", "model.num_layers=8"]).model
    flops = 6 * num_params(model) * 16 * CASES["175b"].batch[1]  # without attention's own products
    assert row["mfu"] == pytest.approx(flops / (row["step_s"] * 16 * 312e12), rel=0.1)


@pytest.mark.parametrize(("case", "billions"), [("175b", 174.6), ("405b", 405.9)])
def test_the_models_are_the_published_ones(case: str, billions: float) -> None:
    model = load([f"configs/model/{CASES[case].model}.yaml"]).model
    assert num_params(model) / 1e9 == pytest.approx(billions, abs=0.05)
