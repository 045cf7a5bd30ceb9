"""Clocks and ownership after a loss: what the benchmarks say."""

from __future__ import annotations

import pytest

from benchmarks.clocks import rows
from benchmarks.interleaved import flat_ranges, interleaved, row
from trainsys.planner.clocks import Clock


def test_governed_clocks_take_less_time_and_saving_ones_less_energy() -> None:
    nominal, governed, saving = rows(3, 4, [1], 24, Clock())
    assert governed["step_s"] < nominal["step_s"]
    assert saving["step_s"] <= nominal["step_s"] * (1 + 1e-9)
    assert saving["energy_j"] < governed["energy_j"]


@pytest.mark.parametrize("dp", [4, 7, 16])
def test_only_what_was_lost_moves_and_evenly(dp: int) -> None:
    elements = 16 * dp * (dp - 1)
    ours = row("interleaved", dp, dp // 2, elements)
    assert (ours["received"], ours["receive"]) == (1, 1)
    assert row("flat ranges", dp, dp // 2, elements)["received"] > 1
    for moves in (interleaved(dp, 1, elements), flat_ranges(dp, 1, elements)):
        assert 1 not in {rank for pair in moves for rank in pair}
