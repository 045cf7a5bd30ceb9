"""Communicator edits: seconds to leave a rank out and to take it in again, against building every group anew.

The groups are those of a dp x 2 mesh: one of all ranks, one per stage of a two-stage pipeline, and the pairs between.
The last rank leaves and returns by turns. `edit` keeps the groups whose members are unchanged; `rebuild` keeps none.
Both in one run; a change lasts from the first rank's start to the last rank's end.

    trainsys bench regroup [--ranks 4] [--repeat 20] [--json]
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.testing import RankPool

WAYS = ("edit", "rebuild")


def groups(members: Sequence[int]) -> list[tuple[int, ...]]:
    """All, the even and the odd ones (two stages), and neighbours (the pairs that a replica's stages form)."""
    pairs = [tuple(members[i : i + 2]) for i in range(0, len(members), 2)]
    candidates = [tuple(members), tuple(members[::2]), tuple(members[1::2]), *pairs]
    return [g for g in dict.fromkeys(candidates) if len(g) > 1]


def body(rank: int, world_size: int, store: Any, repeat: int) -> dict[str, list[tuple[float, float, int]]]:
    """One rank: (start, end, groups kept) of every change, per way."""
    everyone = tuple(range(world_size))
    spans: dict[str, list[tuple[float, float, int]]] = {way: [] for way in WAYS}
    clock = Communicator(store, rank)  # a group of its own, so that every change starts together
    clock.reconfigure(1_000_000, [everyone])
    epoch = 0
    for way in WAYS:
        comm = Communicator(store, rank)
        comm.reconfigure(epoch, groups(everyone))
        for i in range(2 * repeat + 2):
            members = everyone[:-1] if i % 2 == 0 else everyone
            epoch += 1
            keep = _clean_on_all_members(comm, members) if way == "edit" else []
            clock.group(everyone).backend.barrier().wait()
            start = time.perf_counter()
            comm.reconfigure(epoch, groups(members), keep)
            spans[way].append((start, time.perf_counter(), len(keep)))
        comm.close()
        epoch += 1
    clock.close()
    return {way: rows[2:] for way, rows in spans.items()}  # the first leave and return warm up


def _clean_on_all_members(comm: Communicator, members: Sequence[int]) -> list[str]:
    """What the manager would answer when nothing was under way: every group that lost no member."""
    return [name for name in comm.clean() if set(map(int, name.partition("/")[2].split(","))) <= set(members)]


def _quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench regroup", __doc__.splitlines()[0], "  trainsys bench regroup --json")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=20, help="times that the last rank leaves and returns")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    pool = RankPool()
    results = pool.run(body, args.ranks, args.repeat, timeout_s=600)
    pool.close()
    rows = []
    for way in WAYS:
        spans = list(zip(*(r[way] for r in results), strict=True))  # per change: (start, end, kept) of each rank
        for what, first in (("leave", 0), ("return", 1)):
            chosen = spans[first::2]
            seconds = [max(end for _, end, _ in change) - min(start for start, _, _ in change) for change in chosen]
            rows.append(
                {
                    "way": way,
                    "change": what,
                    "kept": chosen[0][0][2],
                    "p50_ms": 1e3 * _quantile(seconds, 0.5),
                    "p95_ms": 1e3 * _quantile(seconds, 0.95),
                }
            )
    if args.json:
        print(json.dumps({"ranks": args.ranks, "repeat": args.repeat, "rows": rows}))
        return 0
    print(f"{args.ranks} ranks, gloo over loopback, {args.repeat} times each")
    for row in rows:
        print(
            f"{row['way']:8} {row['change']:6}  p50 {row['p50_ms']:7.1f} ms  p95 {row['p95_ms']:7.1f} ms  "
            f"(rank 0 kept {row['kept']} groups)"
        )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
