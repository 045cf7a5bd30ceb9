"""The bench of scans: its rows on any links, and what it makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import scan
from trainsys.testing import RankPool
from trainsys.testing.wires_lab import missing

SHAPE = (1, 2, 8, 4)


def test_every_method_gives_the_chain(ranks: RankPool) -> None:
    names = ["lasp", "lasp2, all-gather", "lasp2, direct", "all-scan K=3"]
    for result in ranks.run(scan.body, 3, names, 2, SHAPE):
        for spans, error in result.values():
            assert len(spans) == 2
            assert error < 1e-6


@pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")
def test_rows_and_summary() -> None:
    rows = scan.measure("star", 1, (1, 2, 64, 64), 0.02)
    assert sum(row["chosen"] for row in rows) == 1
    bound = 4 * 2 * 64 * 64 / 0.02e9
    assert all(row["seconds"] > 0.5 * bound for row in rows)
    found: dict[str, Any] = scan.summarize(rows)["star"]
    assert found["regret"] >= 0
