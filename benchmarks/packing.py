"""When a message of its own beats packing: scattered runs of one size, sent run by run or through staging buffers.

Ranks 2i and 2i+1 swap the same bytes, laid out as runs with gaps between them. `direct` sends every run as a message,
from storage into place; `packed` copies into a buffer, sends that, and copies out. The size from which `direct` wins
is what `LEAST_BYTES` in `elastic/transit.py` stands for.

    trainsys bench packing [--ranks 4] [--mib 24] [--kib 16,32,64,128,256,512,1024] [--repeat 9] [--json]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks._clock import Span, median_s, span
from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.elastic.transit import LEAST_BYTES
from trainsys.space.rounds import PART_BYTES
from trainsys.testing import RankPool


def body(rank: int, world_size: int, store: Any, total: int, sizes: Sequence[int], repeat: int) -> list[dict[str, Any]]:
    """One rank: spans of both ways for each size of run in bytes."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group, peer, rows = comm.group(members), rank ^ 1, []
    for size in sizes:
        row, count = size // 4, total // size
        old = torch.full((count, 2 * row), float(rank))  # a gap as long as the run
        new = torch.full((count, 2 * row), -1.0)
        per_part = max(1, PART_BYTES // size)
        out, into = torch.zeros(per_part, row), torch.zeros(per_part, row)
        spans: dict[str, list[Span]] = {"direct": [], "packed": []}
        for _ in range(repeat):
            new.fill_(-1.0)
            spans["direct"].append(span(group, lambda: _direct(group, peer, old[:, :row], new[:, :row], per_part)))
            right = bool((new[:, :row] == peer).all())
            new.fill_(-1.0)
            spans["packed"].append(span(group, lambda: _packed(group, peer, old[:, :row], new[:, :row], out, into)))
            right = right and bool((new[:, :row] == peer).all())
        rows.append({**spans, "right": right})
    comm.close()
    return rows


def _direct(group: Group, peer: int, old: torch.Tensor, new: torch.Tensor, per_part: int) -> None:
    for at in range(0, len(old), per_part):
        runs = range(at, min(at + per_part, len(old)))
        exchange(group, [(peer, old[i], i - at) for i in runs], [(peer, new[i], i - at) for i in runs])


def _packed(
    group: Group, peer: int, old: torch.Tensor, new: torch.Tensor, out: torch.Tensor, into: torch.Tensor
) -> None:
    for at in range(0, len(old), len(out)):
        n = min(len(out), len(old) - at)
        out[:n].copy_(old[at : at + n])
        exchange(group, [(peer, out[:n], 0)], [(peer, into[:n], 0)])
        new[at : at + n].copy_(into[:n])


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench packing", __doc__.splitlines()[0], "  trainsys bench packing --json")
    parser.add_argument("--ranks", type=int, default=4, help="an even number")
    parser.add_argument("--mib", type=float, default=24, help="what each rank sends, MiB")
    parser.add_argument("--kib", default="16,32,64,128,256,512,1024", help="sizes of a run, KiB")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    sizes = [int(float(s) * 1024) for s in args.kib.split(",")]
    pool = RankPool()
    results = pool.run(body, args.ranks, int(args.mib * 2**20), sizes, args.repeat, timeout_s=300)
    pool.close()
    rows = []
    for i, size in enumerate(sizes):
        seconds = {way: median_s([r[i][way] for r in results]) for way in ("direct", "packed")}
        right = all(r[i]["right"] for r in results)
        rows.append({"run_bytes": size, **{f"{way}_s": s for way, s in seconds.items()}, "right": right})
    if args.json:
        print(json.dumps({"ranks": args.ranks, "least_bytes": LEAST_BYTES, "rows": rows}))
    else:
        print(f"{args.ranks} ranks, {args.mib:g} MiB each, median of {args.repeat}; in use: {LEAST_BYTES >> 10} KiB")
        for row in rows:
            print(
                f"{row['run_bytes'] >> 10:5} KiB  direct {1e3 * row['direct_s']:7.1f} ms  "
                f"packed {1e3 * row['packed_s']:7.1f} ms  ratio {row['direct_s'] / row['packed_s']:.2f}"
            )
    return 0 if all(r["right"] for r in rows) else 1


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
