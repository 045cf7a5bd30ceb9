"""Collectives that follow the wires, on real wires: every method beside the backend's own and the bound of the links.

Ranks are in network namespaces, joined by links of a rate (`trainsys.testing.wires_lab`); gloo and its TCP are real.
Every result is checked element by element, every byte counted at the interfaces. Methods take turns; the least of the
repetitions counts, for this machine does other things too. Needs root; ``--lab emulated`` does not: there one process
stands for the wires.

*chosen* is the method that the model of time likes best before anything has run, of equal ones that which depends least
on its steps overlapping. The bound is what must enter a set of
ranks over what leads into it, at the rate that headers leave to messages.

    trainsys bench collectives [--topologies mesh4,star4,FILE.yaml] [--collective all_gather] [--repeats 5] [--json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks._collectives_methods import NATIVE, body
from trainsys.cli.arguments import Parser, screen, whole_numbers
from trainsys.comm.datapath_bound import bound_s
from trainsys.comm.datapath_choice import ROUTED, Candidates
from trainsys.comm.datapath_time import ALPHA_S, all_to_all_s, edge_bytes
from trainsys.comm.scan_time import MOST_BLOCKS, all_scan_s, best_blocks
from trainsys.comm.topology import Link
from trainsys.comm.wires import Edge, Wires, mesh, star, two_level
from trainsys.comm.wires_file import read_wires
from trainsys.testing.emulated_wires import EmulatedWiresLab
from trainsys.testing.wires_lab import WiresLab, missing

# wires, and bytes of a member's piece of an all-gather; rates are what two cores can carry on all links at once
TOPOLOGIES: dict[str, tuple[Callable[[], Wires], int]] = {
    "mesh3": (lambda: mesh(3, 0.025), 8_000_000),
    "mesh4": (lambda: mesh(4, 0.025), 8_000_000),
    "star4": (lambda: star(4, 0.025), 8_000_000),
    "mesh5": (lambda: mesh(5, 0.015), 4_800_000),
    "mesh6": (lambda: mesh(6, 0.0075), 2_400_000),
    "mesh8": (lambda: mesh(8, 0.00375), 1_800_000),
    "two_level": (lambda: two_level(2, 2, 0.05, 0.0075), 1_500_000),
}
COLLECTIVES = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all", "all_scan")
PIECES: dict[str, Callable[[int], float]] = {  # of that number, for n members: so that a collective takes as long
    "all_gather": lambda n: 1.0,
    "reduce_scatter": lambda n: 1.0,
    "all_reduce": lambda n: 2.0 / n,
    "all_to_all": lambda n: 0.5,
    "all_scan": lambda n: 1.0,
}
CLOSE = 1.08  # chosen over bound: the bar


def main(argv: Sequence[str]) -> int:
    parser = Parser(
        "bench collectives", __doc__.splitlines()[0], "  trainsys bench collectives --topologies mesh4,star4"
    )
    names = ", ".join(TOPOLOGIES)
    parser.add_argument("--topologies", default=",".join(TOPOLOGIES), metavar="A,B", help=f"{names}, or YAML files")
    parser.add_argument("--collective", default="all_gather", choices=COLLECTIVES)
    parser.add_argument("--methods", default="", metavar="A,B", help="only these")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=0, help="of a member's piece; 0: as suits the rates")
    parser.add_argument("--lab", default="namespaces", choices=("namespaces", "emulated"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    whole_numbers("--repeats", str(args.repeats))
    whole_numbers("--bytes", str(args.bytes), least=0)
    why = missing() if args.lab == "namespaces" else ""
    if why:
        said = f"{why}; --lab emulated needs no privileges"
        print(json.dumps({"skipped": said}) if args.json else f"skipped: {said}")
        return 0
    rows: list[dict[str, Any]] = []
    told = screen(stderr=True)
    for name in args.topologies.split(","):
        wires, num_bytes = topology(name, args.collective, args.bytes)
        methods = methods_of(args.collective, wires, args.methods)
        told.print(f"{name}: {args.collective} of {num_bytes / 1e6:g} MB per piece, {', '.join(methods)}")
        rows += measure(name, wires, args.collective, methods, num_bytes // 4, args.repeats, args.lab == "emulated")
    summary = summarize(rows)
    if args.json:
        print(json.dumps({"collective": args.collective, "lab": args.lab, "rows": rows, "summary": summary}))
    else:
        show(args.collective, args.lab, rows, summary)
    right = all(row["max_error"] == 0 for row in rows)
    close = args.collective != "all_gather" or all(one["chosen_over_bound"] <= CLOSE for one in summary)
    return 0 if right and close else 1


def topology(name: str, collective: str, num_bytes: int = 0) -> tuple[Wires, int]:
    """Wires by name or from a file, and the bytes of a piece: a third of a second's worth by default.

    Raises:
        ValueError: for an unknown name, or wires that cannot be.
    """
    if name in TOPOLOGIES:
        make, usual = TOPOLOGIES[name]
        wires = make()
    elif Path(name).suffix in (".yaml", ".yml"):
        wires = read_wires(name)
        usual = int(0.33 / bound_s(wires, 1.0))
    else:
        raise ValueError(f"unknown topology {name!r}; there are {', '.join(TOPOLOGIES)}, or the name of a YAML file")
    size = num_bytes or int(usual * PIECES[collective](wires.num_ranks))
    return wires, max(4, size // 4 * 4)


def methods_of(collective: str, wires: Wires, only: str = "") -> tuple[str, ...]:
    """What there is for these wires, the backend's own last. Raises ValueError for an unknown name."""
    if collective == "all_to_all":
        found = ["direct"]
    elif collective == "all_scan":
        found = ["chain", "chain-1", "chain-4"]
    else:
        found = list(Candidates(wires).methods)
    found.append(NATIVE)
    wanted = only.split(",") if only else found
    unknown = set(wanted) - set(found)
    if unknown:
        raise ValueError(f"no method {', '.join(sorted(unknown))} for {collective} on {wires.name}; there are {found}")
    return tuple(method for method in found if method in wanted)


def measure(
    name: str, wires: Wires, collective: str, methods: tuple[str, ...], elements: int, repeats: int, emulated: bool
) -> list[dict[str, Any]]:
    """A row per method."""
    with (EmulatedWiresLab if emulated else WiresLab)(wires) as lab:
        at_payload = with_payload(wires, lab.payload)
        counted = {}
        for method in methods:  # warms up, too
            lab.mark()
            lab.run(body, at_payload, collective, (method,), elements, 1)
            counted[method] = lab.counters()
        results = lab.run(body, at_payload, collective, methods, elements, repeats, timeout_s=600)
    paths, piece = Candidates(at_payload), elements * 4
    bound = least_s(collective, at_payload, piece)
    predicted = {method: predict_s(collective, method, paths, piece) for method in methods if method != NATIVE}
    chosen = choose(collective, predicted, paths, piece)
    rows = []
    for method in methods:
        spans = [result[method][0] for result in results]
        times = [max(e for _, e in one) - min(s for s, _ in one) for one in zip(*spans, strict=True)]
        formula = on_wires(collective, method, paths, piece)
        rows.append(
            {
                "topology": name,
                "n": wires.num_ranks,
                "method": method,
                "seconds": min(times),
                "predicted_s": predicted.get(method),
                "bound_seconds": bound,
                "wire_bytes": sum(counted[method].values()),
                "formula_bytes": None if formula is None else round(sum(formula.values())),
                "worst_edge": None if formula is None else worst_edge(counted[method], formula),
                "max_error": max(result[method][1] for result in results),
                "chosen": method == chosen,
            }
        )
    return rows


def with_payload(wires: Wires, part: float) -> Wires:
    """Wires whose rates are what messages get."""
    return replace(wires, links={edge: Link(link.gbps * part, link.latency_s) for edge, link in wires.links.items()})


def least_s(collective: str, wires: Wires, piece: int) -> float:
    """The bound. Of an all-to-all it is the fullest edge on the given ways, of an all-scan one state over each link."""
    if collective == "all_to_all":
        load = on_wires(collective, "direct", Candidates(wires), piece) or {}
        return max(count / (wires.links[edge].gbps * 1e9) for edge, count in load.items())
    if collective == "all_scan":
        return max(piece / (wires.link(a, b).gbps * 1e9) for a, b in chain(wires))
    return bound_s(wires, piece, collective)


def predict_s(collective: str, method: str, paths: Candidates, piece: int) -> float:
    """Seconds by the model of time."""
    if collective == "all_to_all":
        return all_to_all_s(paths.wires, piece)
    if collective == "all_scan":
        n, slowest = paths.wires.num_ranks, min(paths.wires.link(a, b).gbps for a, b in chain(paths.wires))
        best = best_blocks(n, piece, slowest, ALPHA_S, MOST_BLOCKS)
        return all_scan_s(n, piece, slowest, ALPHA_S, best if method == "chain" else int(method.removeprefix("chain-")))
    return paths.seconds(collective, method, piece)


def chain(wires: Wires) -> list[Edge]:
    """The pairs that an all-scan goes over."""
    return list(pairwise(range(wires.num_ranks)))


def choose(collective: str, predicted: Mapping[str, float], paths: Candidates, piece: int) -> str | None:
    """What `Collectives` would take of these methods."""
    if collective in ROUTED and predicted:
        return paths.preferred(collective, predicted, piece)
    return min(predicted, key=lambda method: predicted[method], default=None)


def on_wires(collective: str, method: str, paths: Candidates, piece: int) -> dict[Edge, float] | None:
    """Bytes that each edge carries by the formula; None for what the backend does in its own way."""
    if method == NATIVE:
        return None
    wires = paths.wires
    found = dict.fromkeys(wires.links, 0.0)
    if collective in ROUTED:
        for path in paths.halves(collective, method):
            for edge, count in edge_bytes(path, wires, piece).items():
                found[edge] += count
        return found
    for pair in wires.routes if collective == "all_to_all" else chain(wires):
        for edge in wires.routes[pair]:
            found[edge] += piece
    return found


def worst_edge(counted: Mapping[Edge, int], formula: Mapping[Edge, float]) -> float:
    """How far counted bytes are from the formula's, of the edge where that is most, relative to the fullest edge."""
    return max(abs(counted[edge] - formula[edge]) for edge in formula) / max(formula.values())


def summarize(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each topology: the choice, what it costs beside the best, and the best beside ring and backend."""
    found = []
    for name in dict.fromkeys(row["topology"] for row in rows):
        of = {row["method"]: row["seconds"] for row in rows if row["topology"] == name}
        chosen = next((row for row in rows if row["topology"] == name and row["chosen"]), None)
        best = min(of, key=lambda method: of[method])
        if chosen is None:
            continue
        found.append(
            {
                "topology": name,
                "chosen": chosen["method"],
                "chosen_over_bound": chosen["seconds"] / chosen["bound_seconds"],
                "best": best,
                "regret": chosen["seconds"] / of[best] - 1,
                "times_ring": of["ring"] / chosen["seconds"] if "ring" in of else None,
                "times_native": of[NATIVE] / chosen["seconds"] if NATIVE in of else None,
            }
        )
    return found


def show(collective: str, lab: str, rows: Sequence[Mapping[str, Any]], summary: Sequence[Mapping[str, Any]]) -> None:
    """Tables for people."""
    from rich.table import Table

    out = screen()
    table = Table(title=f"{collective}, {lab}{' (EMULATED WIRES)' if lab == 'emulated' else ''}")
    for column in ("topology", "method", "ms", "predicted", "over bound", "MB on wires", "by formula", "max error", ""):
        table.add_column(column, justify="left" if column in ("topology", "method", "") else "right")
    for row in rows:
        table.add_row(
            row["topology"],
            row["method"],
            f"{row['seconds'] * 1e3:.0f}",
            "" if row["predicted_s"] is None else f"{row['predicted_s'] * 1e3:.0f}",
            f"{row['seconds'] / row['bound_seconds']:.3f}",
            f"{row['wire_bytes'] / 1e6:.2f}",
            "" if row["formula_bytes"] is None else f"{row['formula_bytes'] / 1e6:.2f}",
            f"{row['max_error']:g}",
            "chosen" if row["chosen"] else "",
        )
    out.print(table)
    for one in summary:
        beside = [
            f"{one[key]:.2f} times as fast as {who}"
            for key, who in (("times_ring", "ring"), ("times_native", NATIVE))
            if one[key]
        ]
        out.print(
            f"{one['topology']}: {one['chosen']} takes {one['chosen_over_bound']:.3f} of the bound, "
            f"{one['regret']:.1%} longer than the fastest ({one['best']}); {', '.join(beside)}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
