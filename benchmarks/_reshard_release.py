"""`trainsys bench reshard --release progressive`: the same changes in bounded memory, portion by portion."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._clock import median_s, span
from benchmarks._reshard_cases import CASES, build, state_bytes
from benchmarks.reshard import CPU, filled, is_right
from trainsys.comm.communicator import Communicator
from trainsys.elastic.holding import Holding
from trainsys.elastic.progressive import Passage
from trainsys.elastic.staging import STAGING_BYTES, Staging
from trainsys.space.layout import Layout
from trainsys.space.portions import Held, Portions, portions_within
from trainsys.space.tensor import SLOTS, Space
from trainsys.testing import RankPool


def body(rank: int, world_size: int, store: Any, name: str, mib: float, repeat: int, mirrored: bool) -> dict[str, Any]:
    """One rank: the spans of planning and of everything, and the bytes counted."""
    case, space, src, dst = build(name, mib, mirrored)
    alive = tuple(r for r in src.ranks if r not in case.lost)
    part = tuple(r for r in range(world_size) if r in alive or r in dst.ranks)
    if rank not in part:
        return {}
    comm = Communicator(store, rank)
    comm.reconfigure(0, [part])
    group, count = comm.group(part), portions_within(space, (src, dst), STAGING_BYTES, 4)
    row: dict[str, Any] = {"spans": [], "right": True, "portions": count}
    for _ in range(repeat):
        holdings = {0: Holding(filled(space, src, rank), True)} if rank in alive else {}
        staging, passages = Staging(), []

        def act(holdings: dict[int, Holding] = holdings, staging: Staging = staging, done: Any = passages) -> None:
            passage = Passage(
                space, (Held(0, src, 0, count),), dst, rank, alive, dict.fromkeys(part, 0), holdings, 1,
                Portions(space, count, (src.tp, dst.tp), dst.chunk), group, torch.float32, CPU, staging,
            )  # fmt: skip
            passage.run()
            done.append(passage)

        row["spans"].append(span(group, act))
        row["right"] = row["right"] and is_right(passages[0].new, space, dst, rank)
        row |= {"peak": staging.peak_bytes, "received": passages[0].received}
    comm.close()
    row["source"] = _bytes(space, src, rank) if rank in alive else 0
    row["destination"] = _bytes(space, dst, rank) if rank in dst.ranks else 0
    return row


def _bytes(space: Space, layout: Layout, rank: int) -> int:
    return 4 * len(SLOTS) * sum(p.numel for p in layout.storage(space, rank))


def measure(pool: RankPool, name: str, mib: float, repeat: int, mirrored: bool) -> dict[str, Any]:
    """One row. The bound is the larger of source and destination, and the budget, on the rank nearest to it."""
    case = CASES[name]
    rows = [r for r in pool.run(body, case.ranks, name, mib, repeat, mirrored, timeout_s=600) if r]
    nearest = max(rows, key=lambda r: r["peak"] - max(r["source"], r["destination"]))
    return {
        "case": name,
        "ranks": case.ranks,
        "state_bytes": state_bytes(build(name, mib, mirrored)[1]),
        "bytes": sum(r["received"] for r in rows),
        "portions": nearest["portions"],
        "seconds": median_s([r["spans"] for r in rows]),
        "peak_bytes": nearest["peak"],
        "bound_bytes": max(nearest["source"], nearest["destination"]) + STAGING_BYTES,
        "both_bytes": nearest["source"] + nearest["destination"],
        "right": all(r["right"] for r in rows),
    }


def show(row: dict[str, Any], cores: int) -> None:
    """The row on the screen."""
    crowded = f"; {row['ranks']} ranks share {cores} cores" if row["ranks"] > cores else ""
    print(
        f"{row['case']:14} state {row['state_bytes'] / 2**20:.0f} MiB, {row['bytes'] / 2**20:.0f} MiB move in "
        f"{row['portions']} portions, {row['seconds']:.3f} s, hashes included{crowded}\n"
        f"  peak {row['peak_bytes'] / 2**20:.1f} MiB per rank of max(source, destination) + budget = "
        f"{row['bound_bytes'] / 2**20:.1f}; both states: {row['both_bytes'] / 2**20:.1f}; right: {row['right']}",
        flush=True,
    )
