"""The rows of the planning benchmark, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import transition_plan
from trainsys.cli.main import main


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "transition-plan", "--ranks", "128", "--sample", "8", "--models", "70b", "--json"]) == 0
    rows = {(row["case"], row["zero"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == [(case, zero) for case in transition_plan.MODELS["70b"].cases for zero in (1, 0)]
    for row in rows.values():
        assert (row["ranks"], row["sampled"], row["dynatrain_s"]) == (128, 8, 2.0)
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["max_ms"]
        assert row["rss_mib"] > 5
        assert row["predicted_s"] >= row["max_ms"] / 1e3
    # one replica of a stage is gone: under ZeRO-1 the other takes over its pieces, and all keep new mirrors
    assert rows["node lost", 1]["layouts"] == "dp2·tp8·pp8 zero1 → dp1+2+2+2+2+2+2+2·tp8·pp8 zero1"
    assert rows["node lost", 1]["max_received_gib"] > 0
    assert rows["tp8·pp8 → tp4·pp16", 0]["max_received_gib"] > rows["tp8·pp8 → tp4·pp16", 1]["max_received_gib"] > 0


def test_the_predicted_time_is_that_of_the_bytes() -> None:
    """Two rounds by hand: one within a node, one across, each as long as its fuller direction."""
    from trainsys.comm.topology import Topology
    from trainsys.config import ClusterConfig, LinkConfig
    from trainsys.planner.switch import rounds_s
    from trainsys.space.box import Box
    from trainsys.space.places import Place
    from trainsys.space.rounds import Round
    from trainsys.space.transition import Move

    cluster = ClusterConfig(nodes=2, ranks_per_node=2, intra_node=LinkConfig(100, 0), inter_node=LinkConfig(10, 1))

    def part(src: int, dst: int, numel: int) -> tuple[Move, ...]:
        box = Box((0,), (numel,))
        return (Move(0, box, src, dst, Place(0, box), Place(0, box)),)

    million = 10**6  # elements of 12 bytes
    order = [
        Round(1, 3, (part(0, 1, 5 * million),), ()),
        Round(2, 2, (part(0, 2, million),), (part(2, 0, 2 * million), part(2, 0, million))),
    ]
    expected = 60e6 / 100e9 + max(1 + 12e6 / 10e9, 2 + 36e6 / 10e9)
    transfer_s = Topology.from_config(cluster).transfer_s
    assert rounds_s(0, order, transfer_s, transition_plan.ELEMENT_BYTES) == pytest.approx(expected)


def test_bad_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "transition-plan", "--ranks", "100"]) == 2
    assert "--ranks 100 must be a multiple of tp·pp = 64" in capsys.readouterr().err


def test_the_large_model_is_the_published_one() -> None:
    from trainsys.config import load
    from trainsys.models.geometry import num_params

    path = Path(transition_plan.CONFIGS) / "model" / "llama-70b.yaml"
    assert num_params(load([str(path)]).model) == 70_553_706_496
