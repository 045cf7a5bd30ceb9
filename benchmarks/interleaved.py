"""Who sends how much to whom when one of dp ranks is lost: interleaved ownership against flat ranges cut anew. Pure.

A dead rank's share must move, and no more has to. Here pieces are dealt in turns, so that the survivors divide what it
owned; where one flat range per rank is cut anew for one rank less (as Megatron's distributed optimizer cuts its
buffer), nearly every border moves, and so do elements that nobody lost. `received` is what owners have to get, in
shares of one rank; `send` and `receive` are the busiest rank's, in even parts of that. What a dead rank owned alone has
one mirror, the next rank: with interleaved pieces nobody else sends, so receivers are even and the sender is not.

    trainsys bench interleaved [--dp 4,8,16,32,64] [--lost 0.5] [--csv FILE] [--picture FILE] [--json]
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from trainsys.cli.arguments import Parser, whole_numbers
from trainsys.space.seats import default_seats, reseat

Moves = Counter[tuple[int, int]]  # (sender, receiver), old numbers -> elements
WAYS = ("interleaved", "flat ranges")


def interleaved(dp: int, lost: int, elements: int, chunk: int = 16) -> Moves:
    """Elements that owners get, by `space.seats`; a dead rank's pieces come from its mirror, the next rank."""
    kept = {old: new for new, old in enumerate(r for r in range(dp) if r != lost)}
    old_of = {new: old for old, new in kept.items()}
    before = default_seats(dp)
    after = reseat(before, kept, dp - 1)
    moves: Moves = Counter()
    for number in range(elements // chunk):
        had, has = before[number % len(before)], old_of[after[number % len(after)]]
        moves[(had + 1) % dp if had == lost else had, has] += chunk * (had != has)
    return +moves


def flat_ranges(dp: int, lost: int, elements: int) -> Moves:
    """The same where every rank owns one range; the dead one's comes from the next rank's mirror as well."""
    survivors = [r for r in range(dp) if r != lost]
    moves: Moves = Counter()
    for (first, stop), has in zip(_ranges(elements, dp - 1), survivors, strict=True):
        for had, (begin, end) in enumerate(_ranges(elements, dp)):
            shared = max(0, min(stop, end) - max(first, begin))
            if had != has:
                moves[(had + 1) % dp if had == lost else had, has] += shared
    return +moves


def _ranges(elements: int, parts: int) -> Iterator[tuple[int, int]]:
    return pairwise(elements * i // parts for i in range(parts + 1))


def row(way: str, dp: int, lost: int, elements: int) -> dict[str, Any]:
    """What `way` moves, where sender and receiver are different ranks."""
    moves = interleaved(dp, lost, elements) if way == WAYS[0] else flat_ranges(dp, lost, elements)
    sent, got = Counter[int](), Counter[int]()
    pairs = 0
    for (src, dst), n in moves.items():
        got[dst] += n
        if src != dst:  # the mirror itself has what it gets
            sent[src] += n
            pairs += 1
    received, even = sum(got.values()), sum(got.values()) / (dp - 1)
    return {
        "way": way, "dp": dp, "received": received / (elements / dp), "send": max(sent.values()) / even,
        "receive": max(got.values()) / even, "pairs": pairs,
    }  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Elements received and the busiest rank, over dp."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for way in WAYS:
        own = [r for r in rows if r["way"] == way]
        left.plot([r["dp"] for r in own], [r["received"] for r in own], marker="o", label=way)
        right.plot([r["dp"] for r in own], [r["pairs"] for r in own], marker="o", label=way)
    left.set(xlabel="dp", ylabel="moved / share of one rank", xscale="log", yscale="log")
    right.set(xlabel="dp", ylabel="pairs of ranks", xscale="log", yscale="log")
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench interleaved", __doc__.splitlines()[0], "  trainsys bench interleaved --csv owners.csv")
    parser.add_argument("--dp", default="4,8,16,32,64")
    parser.add_argument("--lost", type=float, default=0.5, help="place of the lost rank, as a share of dp")
    parser.add_argument("--csv", metavar="FILE")
    parser.add_argument("--picture", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    if not 0 <= args.lost < 1:
        raise ValueError(f"--lost {args.lost:g} must lie in [0, 1)")
    rows = []
    for dp in whole_numbers("--dp", args.dp, 3):
        elements = 16 * dp * (dp - 1) * 4
        rows += [row(way, dp, int(args.lost * dp), elements) for way in WAYS]
    if args.csv:
        with open(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if args.picture:
        draw(rows, args.picture)
    if args.json:
        print(json.dumps({"rows": rows}))
        return 0
    for r in rows:
        print(
            f"dp {r['dp']:3}  {r['way']:12} moved {r['received']:6.2f} shares  busiest sends {r['send']:6.2f}  "
            f"receives {r['receive']:5.2f} even parts  {r['pairs']:5} pairs"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
