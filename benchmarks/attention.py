"""Attention over a cut sequence on real wires: every method, the one the model of time chooses, and peers.

Ranks are in network namespaces, joined by links of a rate (`trainsys.testing.wires_lab`); gloo and its TCP are real.
Results are compared with dense attention in float64, bytes counted at the interfaces. Methods take turns; the least of
the repetitions counts; who takes twice the best is not repeated. Needs root; ``--lab emulated`` does not.

*chosen* is what the model likes best before anything has run, from the kernel's rates and the cost of a message,
measured once at the beginning; *regret* is its time over that of the best, less one. The bound is what a method's
fullest wire takes, or its computation on the cores of this machine.

    trainsys bench attention [--topologies mesh4,star4] [--heads 8:8,8:2] [--lengths 640,1024] [--peers] [--json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from trainsys.cli.arguments import Parser, among, screen, whole_numbers

REGRET = 0.05  # bars: of the choice
BYTES = 0.02  # of counted bytes beside the formula's
PEER = 1.03  # of the choice's time beside a peer's
STRIPED = 640  # positions to which other layouts are measured, too
EXACT = 2.0  # times the error of dense attention in float32, or
ROUNDING = 5e-7  # of the greatest number


def main(argv: Sequence[str]) -> int:
    from benchmarks._attention_cells import LENGTHS, MASKS, TOPOLOGIES
    from trainsys.testing.wires_lab import missing

    args = _parser(TOPOLOGIES, LENGTHS, MASKS).parse_args(argv)
    _check(args, MASKS)
    why = missing() if args.lab == "namespaces" else ""
    if why:
        said = f"{why}; --lab emulated needs no privileges"
        print(json.dumps({"skipped": said}) if args.json else f"skipped: {said}")
        return 0
    told = screen(stderr=True)
    if args.overlap or args.long:
        return _apart(args, told)
    rows: list[dict[str, Any]] = []
    rates = None
    for name in args.topologies.split(","):
        found, rates = _topology(name, args, told, rates)
        rows += found
    summary = summarize(rows)
    found_all = {"lab": args.lab, "rates": vars(rates), "rows": rows, "summary": summary}
    if args.json:
        print(json.dumps(found_all))
    else:
        show(rows, summary)
    return 0 if summary["exact"] else 1


def _parser(topologies: Mapping[str, Any], lengths: Sequence[int], masks: Mapping[str, Any]) -> Parser:
    parser = Parser("bench attention", __doc__.splitlines()[0], "  trainsys bench attention --topologies mesh4,star4")
    parser.add_argument("--topologies", default=",".join(topologies), metavar="A,B", help=", ".join(topologies))
    parser.add_argument("--heads", default="8:8,8:2", metavar="A:B,C:D", help="query and key heads")
    parser.add_argument("--lengths", default=",".join(map(str, lengths)), metavar="A,B", help="positions")
    parser.add_argument("--masks", default=",".join(masks), metavar="A,B", help=", ".join(masks))
    parser.add_argument("--methods", default="", metavar="A,B", help="only these")
    parser.add_argument("--peers", action="store_true", help="beside other implementations, where they are installed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one length, two repetitions")
    parser.add_argument("--overlap", action="store_true", help="instead: how much of the messages' time is hidden")
    parser.add_argument("--long", action="store_true", help="instead: 131,072 positions over 8 ranks, time and memory")
    parser.add_argument("--lab", default="namespaces", choices=("namespaces", "emulated"))
    parser.add_argument("--json", action="store_true")
    return parser


def _check(args: Any, masks: Mapping[str, Any]) -> None:
    """What can be refused before a laboratory is built. Raises ValueError."""
    from trainsys.sequence.methods import METHODS

    whole_numbers("--repeats", str(args.repeats))
    whole_numbers("--lengths", args.lengths)
    if not among("--masks", args.masks, masks):
        raise ValueError(f"--masks is empty; there are {', '.join(masks)}")
    among("--methods", args.methods, METHODS)
    for heads in args.heads.split(","):
        query, _, key = heads.partition(":")
        if not (query.isdigit() and key.isdigit() and int(key) and int(query) and int(query) % int(key) == 0):
            raise ValueError(f"--heads {heads} must be QUERY:KEY, the first a multiple of the second, such as 8:2")


def _apart(args: Any, told: Any) -> int:
    """What is measured for itself: overlap, length."""
    out = screen()
    if args.overlap:
        from benchmarks._attention_overlap import HIDDEN, rows

        found = rows(told, args.repeats)
        both = [row for row in found if row["direction"] == "both"]
        if not args.json:
            for row in both:
                out.print(
                    f"{row['topology']} {row['method']}: {row['seconds'] * 1e3:.0f} ms, computation "
                    f"{row['compute_s'] * 1e3:.0f} ms, messages alone {row['messages_s'] * 1e3:.0f} ms: "
                    f"{row['hidden']:.1%} hidden (bar {HIDDEN:.0%})"
                )
    else:
        from benchmarks._attention_long import row as long_row

        one = long_row(args.methods or "ring")
        found = [one]
        if not args.json:
            out.print(
                f"{one['length']} positions, {one['method']}: {one['seconds']:.0f} s over {one['ranks']} ranks with at "
                f"most {one['peak_bytes'] / 2**20:.0f} MiB each, {one['one_rank_s']:.0f} s on one with "
                f"{one['one_rank_bytes'] / 2**20:.0f} MiB: {one['part']:.3f} of it (1/{one['ranks']} is "
                f"{1 / one['ranks']:.3f}); sums of squares {one['apart']:.1e} apart"
            )
    if args.json:
        print(json.dumps({"rows": found}))
    return 0


def _topology(name: str, args: Any, told: Any, rates: Any) -> tuple[list[dict[str, Any]], Any]:
    """All cells on the wires `name`; the first laboratory is where rates are calibrated."""
    from benchmarks._attention_body import Cell
    from benchmarks._attention_cells import MASKS, References, connected, run_cell, wires_of, with_payload
    from trainsys.testing.emulated_wires import EmulatedWiresLab
    from trainsys.testing.wires_lab import WiresLab

    wires, rows, references = wires_of(name), list[dict[str, Any]](), References.shared()
    lengths = [int(length) for length in args.lengths.split(",")]
    only = [method for method in args.methods.split(",") if method]
    with (EmulatedWiresLab if args.lab == "emulated" else WiresLab)(wires) as lab:
        usable = with_payload(wires, lab.payload)
        here = connected(lab)
        rates = rates or here
        for heads in args.heads.split(","):
            for length in lengths[: 1 if args.quick else None]:
                for mask in args.masks.split(","):
                    query, key = map(int, heads.split(":"))
                    cell = Cell(name, usable, query, key, length, mask, MASKS[mask](length))
                    extra = _extra(args, cell, told)
                    found = run_cell(lab, cell, rates, only, extra, references, 2 if args.quick else args.repeats)
                    rows += found
                    told.print(_line(found))
    return rows, rates


def _extra(args: Any, cell: Any, told: Any) -> list[str]:
    """What is measured beside the methods to choose from."""
    if args.peers:
        from benchmarks._attention_peers import peers

        return peers(cell, told.print)
    return [] if args.methods or cell.seq_len > STRIPED else ["ring:striped", "ring:contiguous"]


def _line(rows: Sequence[Mapping[str, Any]]) -> str:
    both = [row for row in rows if row["direction"] == "both"]
    best = min(both, key=lambda row: row["seconds"])
    chosen = next(row for row in both if row["chosen"])
    said = [f"{chosen[key] * 1e3:.0f}" for key in ("seconds", "predicted_s")]
    return (
        f"{best['topology']} {best['heads']} {best['length']} {best['mask']}: {chosen['method']} "
        f"{said[0]} ms (said {said[1]}), best {best['method']} {best['seconds'] * 1e3:.0f} ms"
    )


Key = tuple[str, str, int, str]


def cells(rows: Sequence[Mapping[str, Any]], direction: str = "both") -> dict[Key, list[Mapping[str, Any]]]:
    """The rows of each cell."""
    found: dict[Key, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["direction"] == direction:
            found.setdefault((row["topology"], row["heads"], row["length"], row["mask"]), []).append(row)
    return found


def exact(row: Mapping[str, Any]) -> bool:
    """Whether each result is as near to float64 as a dense attention in float32 is, but for some roundings."""
    return all(e <= max(EXACT * p, ROUNDING) for e, p in zip(row["errors"], row["plain_errors"], strict=True))


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all cells: regrets, bytes, errors, wins over peers."""
    regrets, over = [], []
    for key, found in cells(rows).items():
        own = [row for row in found if not row["method"].startswith("peer:") and ":" not in row["method"]]
        chosen = next(row for row in own if row["chosen"])
        best = min(own, key=lambda row: row["seconds"])
        regrets.append(
            {
                "cell": key,
                "chosen": chosen["method"],
                "best": best["method"],
                "regret": chosen["seconds"] / best["seconds"] - 1,
                "over_bound": chosen["seconds"] / chosen["bound_seconds"],
            }
        )
        over += [
            {
                "cell": key,
                "chosen": chosen["method"],
                "peer": row["method"][5:],
                "ratio": row["seconds"] / chosen["seconds"],
            }
            for row in found
            if row["method"].startswith("peer:")
        ]
    counted = [row for row in rows if row["formula_bytes"]]
    deviations = [abs(row["wire_bytes"] / row["formula_bytes"] - 1) for row in counted]
    own = [row for row in rows if not row["method"].startswith("peer:")]
    return {
        "regrets": regrets,
        "worst_regret": max((one["regret"] for one in regrets), default=0.0),
        "cells_over": sum(one["regret"] > REGRET for one in regrets),
        "worst_bytes": max(deviations, default=0.0),
        "worst_errors": [max(row["errors"][i] for row in own) for i in range(4)],
        "plain_errors": [max(row["plain_errors"][i] for row in own) for i in range(4)],
        "exact": all(exact(row) for row in own),
        "peers": over,
        "wins": sum(one["ratio"] >= 1 / PEER for one in over),
    }


def show(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    """Tables for people."""
    from rich.table import Table

    out = screen()
    for key, found in cells(rows).items():
        topology, heads, length, mask = key
        table = Table(title=f"{topology}, heads {heads}, {length} positions, {mask}")
        for column in (
            "method",
            "forward ms",
            "both ms",
            "said ms",
            "over bound",
            "MB on wires",
            "by formula",
            "error",
            "",
        ):
            table.add_column(column, justify="left" if column in ("method", "") else "right")
        forward = {row["method"]: row["seconds"] for row in cells(rows, "forward")[key]}
        for row in sorted(found, key=lambda row: row["seconds"]):
            priced = row["predicted_s"] is not None
            table.add_row(
                row["method"],
                f"{forward[row['method']] * 1e3:.0f}",
                f"{row['seconds'] * 1e3:.0f}",
                f"{row['predicted_s'] * 1e3:.0f}" if priced else "",
                f"{row['seconds'] / row['bound_seconds']:.2f}" if priced else "",
                f"{row['wire_bytes'] / 1e6:.2f}",
                f"{row['formula_bytes'] / 1e6:.2f}" if priced else "",
                f"{row['max_error']:.1e}",
                "chosen" if row["chosen"] else "",
            )
        out.print(table)
    for one in summary["peers"]:
        out.print(
            f"{' '.join(map(str, one['cell']))}: {one['chosen']} {one['ratio']:.2f} times as fast as {one['peer']}"
        )
    kinds = zip(("out", "dq", "dk", "dv"), summary["worst_errors"], summary["plain_errors"], strict=True)
    said = ", ".join(f"{kind} {error:.1e} (dense float32 {plain:.1e})" for kind, error, plain in kinds)
    out.print(f"worst errors over the greatest number: {said}{'' if summary['exact'] else ' NOT EXACT'}")
    out.print(f"worst deviation of bytes from the formula: {summary['worst_bytes']:.2%} (bar {BYTES:.0%})")
    worst = max(summary["regrets"], key=lambda one: one["regret"])
    where = " ".join(map(str, worst["cell"]))
    out.print(f"worst regret: {worst['regret']:.1%} in {where} ({worst['chosen']} for {worst['best']})")
    out.print(f"over {REGRET:.0%} in {summary['cells_over']} of {len(summary['regrets'])} cells")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
