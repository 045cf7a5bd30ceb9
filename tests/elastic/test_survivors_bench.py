"""Four ways to go on after failures, simulated."""

from __future__ import annotations

import pytest

from benchmarks.survivors import LAYERS, WAYS, failed, minimax, ours, step_s


@pytest.mark.parametrize("together", [False, True])
def test_no_other_way_is_faster_than_ours(together: bool) -> None:
    lost = failed(2, together)
    times = {name: way(lost) for name, way in WAYS.items()}
    assert min(times, key=lambda name: times[name]) == "ours"
    assert ours(()) <= min(way(()) for way in WAYS.values())


def test_layers_go_where_there_are_replicas() -> None:
    replicas = (8, 8, 4, 8)
    layers = minimax(replicas)
    assert sum(layers) == LAYERS
    assert layers[2] < min(layers[:2])
    assert step_s(layers, replicas, 32, "zb1p") < step_s((12,) * 4, replicas, 32, "zb1p")
