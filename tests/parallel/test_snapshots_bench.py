"""A glance at what copies cost: bytes are what was promised, whatever the seconds are."""

from __future__ import annotations

import pytest

from benchmarks.snapshots import VARIANTS, measure
from trainsys.testing import RankPool


def test_bytes_per_parameter(ranks: RankPool) -> None:
    rows = measure(ranks, step_s=0.004, rounds=1, dim=16)
    assert [(row["tolerate"], row["ahead"]) for row in rows] == [(f, ahead) for _, f, ahead in VARIANTS]
    for row in rows:
        numbers = {"none": 0, "replay": 1, "full": 3, "delta": 3 + 3 / 32}[row["way"]]  # all change, behind a bit each
        assert row["bytes_per_parameter"] == pytest.approx(4 * numbers * row["tolerate"], rel=0.02)
