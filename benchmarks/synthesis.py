"""Synthesising all-gathers for wires without switches: seconds to make them, their time against a ring and the bound.

Tori, a grid with borders, a torus with every tenth link missing, and one whose links along one axis have half the rate.
The ring follows a Hamiltonian cycle of neighbours where there is one. Times are of the α-β model, in which links are
independent; every datapath is checked before it is timed. The bar for the time is 1.15 of the bound.

    trainsys bench synthesis [--npus 128,1024] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt, prod
from time import perf_counter
from typing import Any

import numpy as np

from trainsys.cli.arguments import Parser
from trainsys.comm.datapath import Datapath
from trainsys.comm.datapath_bound import bound_s
from trainsys.comm.datapath_time import seconds
from trainsys.comm.datapaths import synthesis
from trainsys.comm.datapaths.rings import around
from trainsys.comm.topology import Link
from trainsys.comm.wires import Wires, torus

GBPS, LATENCY_S = 50.0, 1e-6
ALPHA_S = 0.5e-6
NBYTES = 16 * 2**20
BAR = 1.15


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench synthesis", __doc__.splitlines()[0], "  trainsys bench synthesis --npus 128")
    parser.add_argument("--npus", default="128,1024", help="numbers of devices, with commas")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        sizes = [int(size) for size in args.npus.split(",")]
    except ValueError:
        raise ValueError(f"--npus {args.npus} must be numbers with commas between them, such as 128,1024") from None
    rows = []
    for size in sizes:
        for wires in cases(size):
            rows.append(measure(wires))
            if not args.json:
                _show(rows[-1])
    worst = max(row["to_bound"] for row in rows)
    summary = {"worst_to_bound": worst, "slowest_s": max(row["synthesis_s"] for row in rows)}
    if args.json:
        print(json.dumps({"rows": rows, **summary}))
    else:
        print(f"at most {worst:.3f} of the bound, made in {summary['slowest_s']:.2f} s at most")
    return 0 if worst <= BAR else 1


def cases(size: int) -> Iterator[Wires]:
    """The wires of one size. Raises ValueError for a number that is no product of sides of at least 2."""
    flat, cube = _sides(size, 2), _sides(size, 3)
    yield torus(flat, GBPS, LATENCY_S)
    yield torus(cube, GBPS, LATENCY_S)
    yield torus(flat, GBPS, LATENCY_S, wrap=False)
    whole = torus(flat, GBPS, LATENCY_S)
    dice = np.random.default_rng(0)
    missing = {pair for pair in sorted(whole.links) if pair[0] < pair[1] and dice.random() < 0.1}
    kept = {(a, b): link for (a, b), link in whole.links.items() if (min(a, b), max(a, b)) not in missing}
    yield replace(whole, name=f"{whole.name}, holes", links=kept)
    slow = {(a, b): Link(GBPS / (1 if a // flat[1] == b // flat[1] else 2), LATENCY_S) for a, b in whole.links}
    yield replace(whole, name=f"{whole.name}, lopsided", links=slow)


def measure(wires: Wires) -> dict[str, Any]:
    """One row; the datapath is checked within the time that it takes to make."""
    begin = perf_counter()
    path = synthesis.generate(wires, 1, NBYTES, ALPHA_S)
    spent = perf_counter() - begin
    ours, least, ring = seconds(path, wires, NBYTES, ALPHA_S), bound_s(wires, NBYTES), ring_s(wires)
    return {
        "wires": wires.name,
        "npus": wires.num_ranks,
        "sends": len(path.sends),
        "synthesis_s": spent,
        "all_gather_s": ours,
        "bound_s": least,
        "to_bound": ours / least,
        "ring_s": ring,
        "over_ring": None if ring is None else ring / ours,
    }


def ring_s(wires: Wires) -> float | None:
    """Of an all-gather around all devices, by neighbours; None where `snake` needs a link that is missing."""
    order = snake(_sides(wires.num_ranks, 3 if wires.name.count("x") == 2 else 2))
    if any(pair not in wires.routes for pair in zip(order, order[1:] + order[:1], strict=True)):
        return None
    return seconds(Datapath.of("ring", len(order), 1, around(order, 1, [0])), wires, NBYTES, ALPHA_S)


def snake(shape: Sequence[int]) -> list[int]:
    """A Hamiltonian cycle of a grid of an even number of rows: forth and back, and home through the first column."""
    rows, columns = shape[0], prod(shape[1:])
    way = _forth_and_back(shape[1:])
    there = [row * columns + place for row in range(rows) for place in (way[1:] if row % 2 == 0 else way[:0:-1])]
    return there + [row * columns for row in reversed(range(rows))]


def _forth_and_back(shape: Sequence[int]) -> list[int]:
    """A Hamiltonian path of a grid, which begins at 0."""
    if not shape:
        return [0]
    way, size = _forth_and_back(shape[1:]), prod(shape[1:])
    return [row * size + place for row in range(shape[0]) for place in (way if row % 2 == 0 else way[::-1])]


def _sides(size: int, axes: int) -> tuple[int, ...]:
    """Near-equal sides, the first one even if any is."""
    if axes == 1:
        return (size,)
    near = round(size ** (1 / axes)) if axes > 2 else isqrt(size)
    first = next((side for side in range(near, 1, -1) if size % side == 0), None)
    if first is None:
        raise ValueError(f"--npus {size} is no product of {axes} sides; take 64, 128 or 1024")
    sides = (first, *_sides(size // first, axes - 1))
    return tuple(sorted(sides, key=lambda side: side % 2))


def _show(row: dict[str, Any]) -> None:
    ring = "no such ring" if row["over_ring"] is None else f"{row['over_ring']:.2f}x the ring"
    print(
        f"{row['wires']:24} {row['sends']:9,} sends in {row['synthesis_s']:6.2f} s  "
        f"{row['all_gather_s'] * 1e3:8.1f} ms = {row['to_bound']:.3f} of the bound, {ring}",
        flush=True,
    )


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
