"""Is the fitted rate more than a fit? Each A100 set is predicted with the rate fitted on the three others.

One number is fitted for all devices: the share of the best product's rate that a training step sustains. Here it is
scaled to the least error (the sum of the sets' mean absolute errors) on three sets, and judged on the fourth.

    trainsys bench leave-one-out [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser
from trainsys.perf.step import step_cost
from trainsys.validate.rows import Row, read

PUBLISHED = Path(__file__).with_name("published")
SETS = ("sc21_t1", "korthikanti", "vtrain_multi", "llm_foundry")
SCALES = tuple(0.9 + 0.01 * i for i in range(21))


def errors(rows: Sequence[Row]) -> dict[float, float]:
    """Mean absolute error of the step time, percent, by the scale of ``sustained``."""
    found = {}
    for scale in SCALES:
        devices = {d: replace(d, sustained=d.sustained * scale) for d in {row.job.device for row in rows}}
        off = [
            abs(step_cost(replace(row.job, device=devices[row.job.device])).step_s / row.step_s - 1)
            for row in rows
            if row.step_s
        ]
        found[scale] = 100 * sum(off) / len(off)
    return found


def measure() -> list[dict[str, Any]]:
    by_set = {name: errors(read(PUBLISHED / f"{name}.csv")[0]) for name in SETS}
    rows = []
    for name in SETS:
        scale = min(SCALES, key=lambda s: sum(by_set[other][s] for other in SETS if other != name))
        own = by_set[name]
        rows.append({"set": name, "scale": scale, "mape_left_out": own[scale], "mape": own[SCALES[10]]})
    return rows


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench leave-one-out", (__doc__ or "").splitlines()[0], "  trainsys bench leave-one-out --json")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = measure()
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    for row in rows:
        print(
            f"{row['set']:13} rate fitted without it: {row['scale']:.2f} of the shipped one, off by "
            f"{row['mape_left_out']:.1f} %; with the shipped one {row['mape']:.1f} %"
        )
    return 0
