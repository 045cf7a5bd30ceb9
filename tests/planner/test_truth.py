"""The planner against steps that ``trainsys bench truth`` measured on shaped links: its rows, kept here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.truth import LAYOUTS, config_of, summarize, with_latency
from trainsys.planner.predict import predict

MEASURED_S = (3.270, 3.728, 4.669, 8.085, 4.309, 3.661, 4.183, 2.579, 2.442, 2.099, 3.092, 2.580, 2.988, 3.059, 2.718,
              4.323, 3.802, 15.606)  # fmt: skip


def test_the_planner_ranks_layouts_as_the_laboratory_did() -> None:
    cluster, rows = with_latency((1.6e-4, 1.7e-4)), []
    for (microbatch, parallel), measured_s in zip(LAYOUTS, MEASURED_S, strict=True):
        config = replace(config_of(microbatch, **parallel), cluster=cluster)
        plan = predict(config, config.parallel)
        rows.append({"layout": plan.layout, "predicted_s": plan.step_s, "measured_s": measured_s})
    found = summarize(rows)
    assert found["spearman"] > 0.97
    assert found["regret"] < 0.05
    assert found["mape"] < 0.04
    assert found["worst"] < 0.08


def test_the_summary_can_fail() -> None:
    rows = [{"layout": str(i), "predicted_s": p, "measured_s": m} for i, (p, m) in enumerate(((1, 3), (2, 2), (3, 1)))]
    assert summarize(rows)["spearman"] == pytest.approx(-1)
    assert summarize(rows)["regret"] == pytest.approx(2)
