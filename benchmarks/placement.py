"""Placing teams on measured links: predicted communication against the plain order and Pipette's annealing of servers.

Links: a published matrix of 16 A100 nodes at two times, and random ones (lognormal links, some slow nodes, directions
that differ). Every method has the same time; ours may also choose the order of each ring. Nothing is sent: both are
predictions of one cost.

    trainsys bench placement [--random 100] [--seconds 1.0] [--json]
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks._pipette import anneal_servers
from trainsys.cli.arguments import Parser
from trainsys.planner.placement import Traffic, place

MATRICES = Path(__file__).with_name("published") / "link_matrix.csv"
NVLINK_GBPS = 235.0
# teams per node -> layouts on 16 nodes: messages of 2,048 tokens of 12,288, gradients of 175 billion parameters in fp16
LAYOUTS = {
    1: [Traffic(4, 4, 2048 * 12288 * 2, 16, 175e9 * 2 / 4 / 8), Traffic(8, 2, 2048 * 12288 * 2, 16, 175e9 * 2 / 8 / 8)],
    2: [Traffic(8, 4, 2048 * 12288 * 2, 16, 175e9 * 2 / 8 / 4)],
}


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench placement", __doc__.splitlines()[0], "  trainsys bench placement --random 20")
    parser.add_argument("--random", type=int, default=100, help="random matrices")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each method on each case")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for number, (name, nodes) in enumerate(matrices(args.random)):
        per_node = list(LAYOUTS)[number % 2] if name.startswith("random") else None
        for teams in [per_node] if per_node else LAYOUTS:
            for traffic in LAYOUTS[teams]:
                rows.append(measure(name, nodes, teams, traffic, args.seconds))
                if not args.json and not name.startswith("random"):
                    _show(rows[-1])
    summary = _summary(rows)
    if args.json:
        print(json.dumps({"rows": rows, **summary}))
    else:
        print(
            "{cases} cases; never worse than plain: {never_worse_than_plain}, than Pipette: "
            "{never_worse_than_pipette}; median gain {gain_over_plain:.1%} over plain, "
            "{gain_over_pipette:.1%} over Pipette; "
            "{seconds:.2f} s at most".format(**summary)
        )
    return 0 if summary["never_worse_than_plain"] and summary["never_worse_than_pipette"] else 1


def matrices(count: int) -> Iterator[tuple[str, Any]]:
    """(name, GB/s between nodes)."""
    published: dict[str, Any] = {}
    with MATRICES.open(newline="") as file:
        for row in csv.DictReader(file):
            size = int(row["nodes"])
            matrix = published.setdefault(row["matrix"], np.ones((size, size)))
            matrix[int(row["src"]), int(row["dst"])] = float(row["mb_per_s"]) / 1e3
    yield from ((name, matrix) for name, matrix in published.items() if len(matrix) == 16)
    for seed in range(count):
        dice = np.random.default_rng(seed)
        links = 18 * np.exp(dice.normal(0, 0.25, (16, 16)))
        slow = dice.choice(16, dice.integers(0, 4), replace=False)
        links[slow] *= 0.5
        links[:, slow] *= 0.5
        yield f"random {seed}", links


def measure(name: str, nodes: Any, per_node: int, traffic: Traffic, seconds: float) -> dict[str, Any]:
    """One case: a team has its share of its node's adapters, and NVLink to teams beside it."""
    slots = np.arange(len(nodes) * per_node) // per_node
    gbps = nodes[np.ix_(slots, slots)] / per_node
    gbps = np.where(slots[:, None] == slots[None], NVLINK_GBPS, gbps)
    begin = perf_counter()
    ours = place(traffic, gbps, seconds)
    spent = perf_counter() - begin
    inverse = np.where(np.eye(len(gbps), dtype=bool), 0.0, 1e-9 / gbps)
    return {
        "matrix": name,
        "layout": f"tp{8 // per_node}·pp{traffic.pp}·dp{traffic.dp}",
        "plain_s": ours.plain_s,
        "pipette_s": anneal_servers(traffic, inverse, per_node, seconds),
        "ours_s": ours.step_s,
        "seconds": spent,
    }


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "cases": len(rows),
        "never_worse_than_plain": all(r["ours_s"] <= r["plain_s"] * (1 + 1e-9) for r in rows),
        "never_worse_than_pipette": all(r["ours_s"] <= r["pipette_s"] * (1 + 1e-9) for r in rows),
        "gain_over_plain": median(r["plain_s"] / r["ours_s"] - 1 for r in rows),
        "gain_over_pipette": median(r["pipette_s"] / r["ours_s"] - 1 for r in rows),
        "seconds": max(r["seconds"] for r in rows),
    }


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['matrix']:18} {row['layout']:12} plain {row['plain_s']:7.3f} s  Pipette {row['pipette_s']:7.3f} s  "
        f"ours {row['ours_s']:7.3f} s in {row['seconds']:.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
