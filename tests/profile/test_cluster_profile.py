"""What `trainsys profile` measures comes back from its file, and `plan` takes it."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from trainsys.cli.main import main
from trainsys.comm.topology import Topology
from trainsys.config import load
from trainsys.profile.cluster_file import as_cluster, as_text
from trainsys.profile.collectives import judged
from trainsys.profile.compute import Compute
from trainsys.profile.links import ALONE, Direction, rounds
from trainsys.profile.measure import Measured, Seen


def measured(nodes: list[int]) -> Measured:
    """Every link has a bandwidth of its own."""
    ranks = range(len(nodes))
    seen = [
        Seen(node, "cpu of here", 8.0, [Direction(b, 1 + a + b / 10, 1e-5) for b in ranks if b != a], [])
        for a, node in enumerate(nodes)
    ]
    return Measured(seen, Compute(((128, 0.05), (256, 0.1)), 10.0, 2e-6, 0.5), "gloo", 2, 1.0)


@pytest.mark.parametrize("count", [1, 2, 5, ALONE, ALONE + 1, ALONE + 4])
def test_every_pair_measures_once_and_pairs_of_a_round_are_disjoint(count: int) -> None:
    found = [list(pairs) for pairs in rounds(list(range(count)))]
    assert Counter(tuple(sorted(p)) for pairs in found for p in pairs) == Counter(combinations(range(count), 2))
    for pairs in found:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))


def test_the_file_says_what_was_measured(tmp_path: Path) -> None:
    profile = as_cluster(measured([0, 0, 1, 1]), "mine")
    (tmp_path / "cluster.yaml").write_text(as_text(profile))
    assert load([str(tmp_path / "cluster.yaml")]).cluster == profile.cluster
    topology = Topology.from_config(profile.cluster)
    assert [topology.link(a, b).gbps for a, b in ((0, 1), (1, 0), (3, 2))] == [1.1, 2.0, 4.2]
    assert (profile.cluster.nodes, profile.cluster.ranks_per_node, profile.cluster.device.tflops) == (2, 2, 0.1)


@pytest.mark.parametrize("name", ["a: b", "#1", "yes", 'say "hi" \\ é', "{x}", "12"])
def test_any_name_comes_back(name: str, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(as_text(as_cluster(measured([0, 0]), name)))
    assert load([str(tmp_path / "cluster.yaml")]).cluster.name == name


def test_the_way_to_the_host_is_told_where_there_is_one(tmp_path: Path) -> None:
    one, path = measured([0, 0]), tmp_path / "cluster.yaml"
    path.write_text(as_text(as_cluster(one, "mine")))
    assert "host_gbps" not in path.read_text()
    path.write_text(as_text(as_cluster(replace(one, compute=replace(one.compute, host_gbps=52.5)), "mine")))
    assert load([str(path)]).cluster.device.host_gbps == 52.5


def test_nodes_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="node 0: 2, node 1: 1"):
        as_cluster(measured([0, 0, 1]), "mine")


def test_a_collective_is_judged_by_its_slowest_link() -> None:
    topology = Topology.from_config(as_cluster(measured([0, 0, 1, 1]), "mine").cluster)
    (row,) = judged([("all_reduce", 4_000_000, 0.01)], topology)
    assert row.bus_gbps == pytest.approx(0.6)
    assert row.predicted_s == pytest.approx(6 * (1e-5 + 1e6 / (topology.ring(range(4)).gbps * 1e9)))


def test_two_ranks_measure_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cluster.yaml"
    args = ["configs/model/llama-tiny.yaml", "cluster.nodes=1", "--out", str(out), "--seconds", "0.2", "--json"]
    assert main(["profile", *args]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compute"]["memory_gbps"] > 0.1
    assert 0 < found["compute"]["efficiency"] <= 1
    assert {row["name"] for row in found["collectives"]} == {"all_reduce", "all_gather", "all_to_all"}
    assert len(found["cluster"]["links"]["gbps"]) == 2
    plan = ["plan", "configs/model/llama-tiny.yaml", str(out), "--out", str(tmp_path / "plan.yaml"), "--json"]
    assert main(plan) == 0
    assert json.loads(capsys.readouterr().out)["plans"]


def test_bad_input_measures_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--out", str(tmp_path)]) == 2
    assert main(["profile", "--out", str(tmp_path / "no" / "cluster.yaml")]) == 2
    assert main(["profile", "--seconds", "0"]) == 2
    for seconds in ("inf", "nan", "601"):
        assert main(["profile", "--seconds", seconds, "--out", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 6
    assert main(["profile", "--out", "/proc/x"]) == 2
    assert "--out /proc/x cannot be written" in capsys.readouterr().err
    assert main(["profile", "--out", "/dev/null"]) == 2
    assert "--out /dev/null is no regular file" in capsys.readouterr().err
    many = ["cluster.nodes=100", "cluster.ranks_per_node=1", "--out", str(tmp_path / "c.yaml")]
    if (os.cpu_count() or 1) < 25:
        assert main(["profile", *many]) == 2
        assert "cluster.nodes=100 · cluster.ranks_per_node=1 are 100 ranks" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
