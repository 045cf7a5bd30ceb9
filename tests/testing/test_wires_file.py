"""Wires from YAML: what each kind makes, and what is said about files that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainsys.comm.wires import mesh, star, two_level
from trainsys.comm.wires_file import read_wires, wires_from

CONFIGS = Path(__file__).parents[2] / "configs" / "wires"
GRAPH: dict[str, Any] = {
    "kind": "graph",
    "ranks": 3,
    "links": [[0, 1, 0.02, 0.01], [0, "hub", 0.01], [1, "hub", 0.03], [2, "hub", 0.04]],
}


def test_every_file_of_the_repository() -> None:
    files = {path.stem: read_wires(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    assert set(files) == {"mesh4", "mesh8", "star4", "two_level_2x2", "odd", "asymmetric"}
    assert files["mesh4"] == mesh(4, 0.025)
    assert files["mesh8"] == mesh(8, 0.00375)
    assert files["star4"] == star(4, 0.025)
    assert files["two_level_2x2"] == two_level(2, 2, 0.05, 0.0075)
    assert (files["odd"].name, files["odd"].links) == ("odd", mesh(5, 0.015).links)
    odd = files["asymmetric"]
    assert (odd.link(0, 1).gbps, odd.link(1, 0).gbps) == (0.02, 0.01)
    assert (odd.link(0, 2).gbps, odd.link(2, 0).gbps, odd.link(3, 2).gbps) == (0.02, 0.015, 0.01)


def test_a_graph_names_its_switches() -> None:
    wires = wires_from({**GRAPH, "latency_s": 1e-3, "hosts_of": [0, 0, 1], "name": "mine"})
    assert wires.name == "mine"
    assert wires.hosts == (0, 0, 1)
    assert wires.routes[1, 2] == ((1, 3), (3, 2))
    assert (wires.link(1, 2).gbps, wires.link(1, 2).latency_s) == (0.03, 2e-3)


def test_override_changes_one_direction() -> None:
    wires = wires_from({"kind": "mesh", "ranks": 3, "gbps": 0.02, "override": [[0, 2, 0.01]]})
    assert (wires.link(0, 2).gbps, wires.link(2, 0).gbps) == (0.01, 0.02)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "kind: None is not known; use mesh, star, two_level, graph"),
        ({"kind": "mesh", "ranks": 4}, "kind: mesh needs gbps"),
        ({"kind": "mesh", "ranks": 4, "gbps": 1, "hosts": 2}, "unknown key 'hosts' of kind: mesh"),
        ({"kind": "mesh", "ranks": 0, "gbps": 1}, "ranks: 0 must be a whole number, at least 1"),
        ({"kind": "star", "ranks": 4, "gbps": 0}, "gbps: gbps must be > 0, not 0"),
        ({"kind": "star", "ranks": 4, "gbps": "fast"}, "gbps: 'fast' is no number"),
        ({"kind": "star", "ranks": 4, "gbps": 1, "latency_s": -1}, "latency_s: -1 must be at least 0"),
        ({"kind": "star", "ranks": 4, "gbps": 1, "latency_s": float("nan")}, "latency_s: nan must be at least 0"),
        ({"kind": ["mesh"]}, "is not known"),
        ({**GRAPH, "hosts_of": 3}, "hosts_of: 3 must be a list"),
        ({"kind": "star", "ranks": 4, "gbps": 1, "override": [[[0], 1, 2]]}, "is no link"),
        ({**GRAPH, "links": [[0, 1, 1.0], [2, "hub", 1.0]]}, "no way from rank 0 to rank 2"),
        ({**GRAPH, "links": [[0, 1, 1.0], [1, 2, 1.0]]}, "no way from rank 0 to rank 2"),
        ({**GRAPH, "links": [[0, 3, 1.0]]}, "has no rank 3; ranks are 0 to 2, switches have names"),
        ({**GRAPH, "links": [[0, 1, 1.0], [1, 0, 1.0]]}, "is there twice"),
        ({**GRAPH, "links": [[1, 1, 1.0]]}, "joins a node with itself"),
        ({**GRAPH, "links": [[0, 1]]}, r"\[0, 1\] must be \[a, b, gbps\] or"),
        ({**GRAPH, "links": [[0, 1, 1.0, -2]]}, "gbps must be > 0, not -2"),
        ({**GRAPH, "hosts_of": [0, 1]}, "must give the number of a host for each of 3 ranks"),
        ({**GRAPH, "override": [[0, 2, 1.0]]}, "is no link"),
    ],
)
def test_what_cannot_be_is_said(said: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wires_from(said)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match=r"cannot read wires from .*mine.yaml: No such file"):
        read_wires(path)
    path.write_text("- 1")
    with pytest.raises(ValueError, match=r"mine.yaml: wires are keys and values"):
        read_wires(path)
    path.write_text("kind: [")
    with pytest.raises(ValueError, match=r"mine.yaml is no YAML"):
        read_wires(path)
