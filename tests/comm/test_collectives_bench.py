"""The bench of collectives: what it says of a run, and that each of its numbers is the one it claims to be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks import collectives
from benchmarks.collectives import (
    COLLECTIVES,
    choose,
    least_s,
    main,
    methods_of,
    on_wires,
    summarize,
    topology,
    with_payload,
    worst_edge,
)
from trainsys.comm.wires import mesh, two_level


def test_every_collective_on_emulated_wires(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--topologies", "mesh3", "--lab", "emulated", "--repeats", "1", "--bytes", "60000", "--json"]
    for collective, method in (("all_gather", "sliced"), ("all_reduce", "direct"), ("all_scan", "chain")):
        main([*args, "--collective", collective, "--methods", f"{method},gloo"])
        found = json.loads(capsys.readouterr().out)
        assert [row["method"] for row in found["rows"]] == [method, "gloo"]
        for row in found["rows"]:
            assert row["max_error"] == 0
            assert row["seconds"] > 0.9 * row["bound_seconds"]
        mine = found["rows"][0]
        assert mine["chosen"]
        assert abs(mine["wire_bytes"] / mine["formula_bytes"] - 1) < 0.05, "messages this short have larger headers"
        assert found["summary"][0]["chosen"] == method


def test_methods_and_sizes() -> None:
    wires, num_bytes = topology("mesh8", "all_gather")
    assert (wires.num_ranks, num_bytes) == (8, 1_800_000)
    assert {"ring", "k_ring", "direct", "sliced", "gloo"} <= set(methods_of("all_gather", wires))
    assert methods_of("all_scan", wires, "chain-4,gloo") == ("chain-4", "gloo")
    with pytest.raises(ValueError, match="unknown topology 'mesh9'; there are mesh3"):
        topology("mesh9", "all_gather")
    with pytest.raises(ValueError, match="no method fast for all_reduce"):
        methods_of("all_reduce", wires, "fast")
    for name in collectives.TOPOLOGIES:
        for collective in COLLECTIVES:
            wires, num_bytes = topology(name, collective)
            assert 0.05 < least_s(collective, wires, num_bytes) < 1.2, (name, collective)


def test_a_file_s_bytes_suit_its_rates() -> None:
    wires, num_bytes = topology("configs/wires/asymmetric.yaml", "all_gather")
    assert 0.3 < least_s("all_gather", wires, num_bytes) < 0.36


def test_bounds_and_formulas() -> None:
    wires = with_payload(mesh(4, 0.025), 0.8)
    assert wires.link(0, 1).gbps == pytest.approx(0.02)
    assert least_s("all_gather", wires, 20_000_000) == pytest.approx(1.0)
    assert least_s("all_to_all", wires, 20_000_000) == pytest.approx(1.0)
    assert least_s("all_scan", wires, 20_000_000) == pytest.approx(1.0)
    assert least_s("all_to_all", two_level(2, 2, 1.0, 0.02), 10_000_000) == pytest.approx(2.0), "four pairs, one uplink"
    formula = on_wires("all_reduce", "direct", wires, 100)
    assert formula == dict.fromkeys(wires.links, 200)
    assert on_wires("all_gather", "gloo", wires, 100) is None
    counted = dict.fromkeys(wires.links, 200) | {(0, 1): 190}
    assert worst_edge(counted, formula) == pytest.approx(0.05)


def test_equal_predictions_are_told_apart() -> None:
    other = {"a": 3.0, "b": 1.0, "c": 0.0}
    assert choose({"a": 1.0, "b": 1.002, "c": 1.1}, lambda method: other[method]) == "b"
    assert choose({"a": 1.0, "b": 1.02, "c": 1.1}, lambda method: other[method]) == "a"
    assert choose({}, lambda method: 0.0) is None


def test_the_summary_compares_the_choice() -> None:
    def row(method: str, seconds: float, chosen: bool = False) -> dict[str, Any]:
        return {"topology": "t", "method": method, "seconds": seconds, "bound_seconds": 0.5, "chosen": chosen}

    (found,) = summarize([row("ring", 2.0), row("direct", 0.6, True), row("sliced", 0.5), row("gloo", 1.8)])
    assert (found["chosen"], found["best"]) == ("direct", "sliced")
    assert found["regret"] == pytest.approx(0.2)
    assert found["chosen_over_bound"] == pytest.approx(1.2)
    assert (found["times_ring"], found["times_native"]) == (pytest.approx(2 / 0.6), pytest.approx(3.0))
