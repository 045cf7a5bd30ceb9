"""The bench of attention: what it says of a run, and that its numbers are what they claim to be."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import attention
from benchmarks._attention_body import Cell, dense, errors
from benchmarks._attention_cells import MASKS, TOPOLOGIES, price_of, wires_of
from trainsys.sequence.mask import Mask
from trainsys.sequence.price import Rates


@pytest.mark.alone
def test_methods_on_emulated_wires(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--topologies", "mesh4", "--heads", "4:2", "--lengths", "192", "--masks", "documents", "--quick", "--json"]
    assert attention.main([*args, "--lab", "emulated", "--methods", "sliced,ulysses"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [row for row in found["rows"] if row["direction"] == "both"]
    assert {row["method"] for row in rows} == {"sliced", "ulysses"}
    for row in rows:
        assert 0 < row["max_error"] < 2e-6
        assert row["seconds"] > row["bound_seconds"] * 0.5
        assert abs(row["wire_bytes"] / row["formula_bytes"] - 1) < 0.06, "messages this short have larger headers"
    assert sum(row["chosen"] for row in rows) == 1
    (one,) = found["summary"]["regrets"]
    assert one["regret"] >= 0 and one["chosen"] in ("sliced", "ulysses")


def test_the_reference_is_attention_and_errors_are_relative() -> None:
    right = dense(4, 2, 48, MASKS["documents"](48), torch.float64)
    assert [tuple(t.shape) for t in right] == [(1, 48, h, 64) for h in (4, 4, 2, 2)]
    assert all(t.dtype == torch.float64 for t in right)
    scales = [float(t.abs().max()) for t in right]
    assert errors(right, right, scales) == [0.0] * 4
    shifted = [t + scale * 0.25 for t, scale in zip(right, scales, strict=True)]
    assert errors(shifted, right, scales) == pytest.approx([0.25] * 4)


def test_a_summary_finds_regret_and_inexact_results() -> None:
    cell = {"topology": "mesh4", "heads": "8:8", "length": 8, "mask": "causal", "direction": "both"}
    more = {"bound_seconds": 0.5, "wire_bytes": 101, "formula_bytes": 100, "plain_errors": [4e-7] * 4}
    rows = [
        {**cell, **more, "method": "ring", "seconds": 1.1, "errors": [4e-7] * 4, "chosen": True},
        {**cell, **more, "method": "tasp", "seconds": 1.0, "errors": [4e-7] * 4, "chosen": False},
        {**cell, **more, "method": "ring:striped", "seconds": 0.9, "errors": [4e-7] * 4, "chosen": False},
        {**cell, **more, "method": "peer:torch", "seconds": 2.2, "errors": [1.0] * 4, "chosen": False},
    ]
    found = attention.summarize(rows)
    assert found["worst_regret"] == pytest.approx(0.1)
    assert found["cells_over"] == 1
    assert found["worst_bytes"] == pytest.approx(0.01)
    assert found["exact"]
    assert [one["ratio"] for one in found["peers"]] == pytest.approx([2.0])
    rows[1]["errors"] = [4e-7, 9e-7, 4e-7, 4e-7]
    assert not attention.summarize(rows)["exact"]


def test_every_topology_has_methods_and_its_bytes_a_formula() -> None:
    for name in TOPOLOGIES:
        cell = Cell(name, wires_of(name), 8, 2, 320, "causal", Mask())
        priced = price_of(cell, "ring:striped", Rates(1e11, 1e11))
        assert 0 < priced.bound_s < priced.seconds
        assert sum(priced.edges.values()) >= priced.forward_bytes + priced.backward_bytes
    with pytest.raises(ValueError, match="unknown topology 'mesh9'; there are mesh4"):
        wires_of("mesh9")
