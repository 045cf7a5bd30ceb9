"""Canonical reduction against gloo's all_reduce, in one run.

Every rank starts with one flat fp32 gradient and ends with the sum on all ranks. Ours adds in the fixed tree order, so
the bits do not depend on the ranks; the volume is the same as a ring's. Repetitions alternate; median and best of each.

    trainsys bench reduction [--ranks 4] [--mib 1,16,64] [--repeat 25] [--json]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.comm.tree import Tree, TreeSum
from trainsys.parallel.bucket import Bucket, BucketSpec
from trainsys.space.layout import Piece
from trainsys.testing import RankPool


def body(rank: int, world_size: int, store: Any, sizes: Sequence[int], repeat: int) -> list[dict[str, Any]]:
    """One rank: for each size in bytes the seconds of both ways, and whether ours equals the tree sum."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group = comm.group(members)
    rows = []
    for size in sizes:
        numel = size // 4
        edges = [numel * r // world_size for r in range(world_size + 1)]
        tree = Tree(world_size)
        spec = BucketSpec(
            ranks=members,
            pieces=tuple(Piece(0, 0, edges[r], edges[r + 1]) for r in members),
            regions={r: (edges[r], edges[r + 1]) for r in members},
            tree=tree,
            leaves={r: (tree.leaf(r),) for r in members},
            uses=((0,),),
        )
        bucket = Bucket(spec, rank, group, torch.float32, torch.device("cpu"), fast=False)
        grad = torch.randn(numel, generator=torch.Generator().manual_seed(rank))
        ours, theirs = [], []
        for _ in range(repeat):
            flat = grad.clone()
            bucket.begin()
            ours.append(_timed(group, lambda flat=flat: _canonical(bucket, tree.leaf(rank), flat)))
            flat = grad.clone()
            theirs.append(_timed(group, lambda flat=flat: _all_reduce(group, flat)))
        rows.append(
            {"bytes": size, "ours": ours, "gloo": theirs, "exact": _exact(bucket, tree, grad, world_size, rank)}
        )
    comm.close()
    return rows


def _canonical(bucket: Bucket, leaf: tuple[int, int], flat: torch.Tensor) -> torch.Tensor:
    bucket.add(leaf, flat)
    total = bucket.reduce()
    bucket.gather(total)
    return total


def _all_reduce(group: Any, flat: torch.Tensor) -> None:
    group.backend.allreduce([flat]).wait()


def _timed(group: Any, action: Any) -> float:
    group.backend.barrier().wait()
    start = time.perf_counter()
    action()
    group.backend.barrier().wait()
    return time.perf_counter() - start


def _exact(bucket: Bucket, tree: Tree, grad: torch.Tensor, world_size: int, rank: int) -> bool:
    """Whether the distributed sum has the bits of the tree sum computed in one process."""
    expected: TreeSum[torch.Tensor] = TreeSum(tree, lambda a, b: a + b)
    for r in range(world_size):
        expected.push(tree.leaf(r), torch.randn(grad.numel(), generator=torch.Generator().manual_seed(r)))
    bucket.begin()
    return torch.equal(_canonical(bucket, tree.leaf(rank), grad.clone()), expected.total())


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench reduction", __doc__.splitlines()[0], "  trainsys bench reduction --json")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--mib", default="1,16,64", help="sizes of the gradient, MiB")
    parser.add_argument("--repeat", type=int, default=25)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    sizes = [int(float(s) * (1 << 20)) for s in args.mib.split(",")]
    pool = RankPool()
    results = pool.run(body, args.ranks, sizes, args.repeat, timeout_s=600)
    pool.close()
    rows = []
    for i, size in enumerate(sizes):
        # the slowest rank defines each repetition
        ours = [max(r[i]["ours"][k] for r in results) for k in range(args.repeat)]
        gloo = [max(r[i]["gloo"][k] for r in results) for k in range(args.repeat)]
        rows.append(
            {
                "mib": size / (1 << 20),
                "ours_ms": 1e3 * statistics.median(ours),
                "gloo_ms": 1e3 * statistics.median(gloo),
                "ratio": statistics.median(ours) / statistics.median(gloo),
                "ratio_best": min(ours) / min(gloo),
                "exact": all(r[i]["exact"] for r in results),
            }
        )
    if args.json:
        print(json.dumps({"ranks": args.ranks, "rows": rows}))
    else:
        print(f"{args.ranks} ranks, gloo over loopback, median of {args.repeat} (best)")
        for row in rows:
            print(
                f"{row['mib']:6.0f} MiB  canonical {row['ours_ms']:8.1f} ms  all_reduce {row['gloo_ms']:8.1f} ms  "
                f"ratio {row['ratio']:.2f} ({row['ratio_best']:.2f})  exact: {row['exact']}"
            )
    return 0


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
