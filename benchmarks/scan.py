"""The state of linear attention on its way through four ranks: LASP, LASP-2 and All-Scan on shaped links.

Each rank makes a state of 4 MiB that fades by shares of its rows, and wants what the ranks before it make of nothing.
Links have 60 Mbit/s: of a star each rank has one to a switch, of a mesh one to each other rank. Methods take turns, and
the least time of each counts; every result is compared with a chain computed alone. The bound is one state over one
link. What is chosen is what `comm.scan_time.choose` thinks best on those wires. Needs root; without, it says so and
ends with 0. Both topologies take two minutes.

    trainsys bench scan [--topology star|mesh|both] [--repeats 5] [--json]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks._clock import Span, span
from trainsys.cli.arguments import Parser, whole_numbers
from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.comm.scan_time import all_gather_s, all_scan_s, best_blocks, bound_s, choose
from trainsys.comm.wires import mesh, star
from trainsys.models.linear_attention import carry
from trainsys.parallel.sequence.linear.all_scan import in_blocks
from trainsys.parallel.sequence.linear.lasp import lasp
from trainsys.parallel.sequence.linear.lasp2 import lasp2, lasp2_direct
from trainsys.parallel.sequence.linear.scan import Line, Method
from trainsys.testing.wires_lab import WiresLab, missing

RANKS, GBPS = 4, 0.0075  # GB/s: 60 Mbit/s
SHAPE = (1, 16, 256, 256)  # [B, heads, dk, dv] of float32: 4 MiB
BLOCKS = (2, 4, 8, 16, 32)  # one block is LASP's chain
TOPOLOGIES = {"star": star, "mesh": mesh}
BARS = (("lasp2, all-gather", 2.8), ("lasp", 2.5))  # times that All-Scan has to be faster on the star


@dataclasses.dataclass(frozen=True)
class Alone:
    """A team that is a whole group."""

    group: Group

    @property
    def members(self) -> tuple[int, ...]:
        return self.group.ranks

    @property
    def index(self) -> int:
        return self.members.index(self.group.rank)

    @property
    def size(self) -> int:
        return len(self.members)


def made(rank: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """State and transition of a rank."""
    dice = torch.Generator().manual_seed(rank)
    return torch.randn(shape, generator=dice), torch.rand(*shape[:-1], 1, generator=dice)


def body(
    rank: int, world_size: int, store: Any, names: Sequence[str], repeats: int, shape: tuple[int, ...]
) -> dict[str, tuple[list[Span], float]]:
    """One rank: spans of each method, taking turns, and its largest error."""
    comm = Communicator(store, rank, "gloo", 60.0)
    comm.reconfigure(0, [tuple(range(world_size))])
    group = comm.group(range(world_size))
    line, (state, transition) = Line(Alone(group), back=False), made(rank, shape)
    want = torch.zeros(shape)
    for earlier in range(rank):
        theirs, kept = made(earlier, shape)
        want = carry(kept, want) + theirs
    found: dict[str, tuple[list[Span], float]] = {name: ([], 0.0) for name in names}
    for _ in range(repeats):
        for name in names:
            method, got = _method(name), list[Tensor]()
            taken = span(group, partial(_into, got, method, line, state, transition))
            spans, error = found[name]
            found[name] = ([*spans, taken], max(error, float((got[0] - want).abs().max())))
    comm.close()
    return found


def _into(found: list[Tensor], method: Method, line: Line, state: Tensor, transition: Tensor) -> None:
    found.append(method(line, state, transition))


def _method(name: str) -> Method:
    known: dict[str, Method] = {"lasp": lasp, "lasp2, all-gather": lasp2, "lasp2, direct": lasp2_direct}
    return known[name] if name in known else in_blocks(int(name.split("=")[1]))


def latency(rank: int, world_size: int, store: Any, repeat: int) -> float:
    """Least seconds of a small message handed on from each rank to the next."""
    comm = Communicator(store, rank, "gloo", 60.0)
    comm.reconfigure(0, [tuple(range(world_size))])
    group, seconds = comm.group(range(world_size)), []
    after, before = (rank + 1) % world_size, (rank - 1) % world_size
    for _ in range(repeat):
        group.backend.barrier().wait()
        start = time.perf_counter()
        exchange(group, [(after, torch.zeros(8), 0)], [(before, torch.zeros(8), 0)])
        seconds.append(time.perf_counter() - start)
    comm.close()
    return min(seconds)


def measure(topology: str, repeats: int, shape: tuple[int, ...] = SHAPE, gbps: float = GBPS) -> list[dict[str, Any]]:
    """A row per method."""
    size, most = 4 * torch.Size(shape).numel(), torch.Size(shape[:-1]).numel()
    with WiresLab(TOPOLOGIES[topology](RANKS, gbps)) as lab:
        rate, alpha = gbps * lab.payload, max(lab.run(latency, 30))
        best = best_blocks(RANKS, size, rate, alpha, most)
        choice = choose(TOPOLOGIES[topology](RANKS, rate, alpha), size, size // shape[-1], most)
        chosen = "lasp2, direct" if choice.method == "lasp2_direct" else f"all-scan K={choice.blocks}"
        names = ["lasp", "lasp2, all-gather", "lasp2, direct", *(f"all-scan K={k}" for k in sorted({*BLOCKS, best}))]
        results = lab.run(body, list(dict.fromkeys((*names, chosen))), repeats, shape, timeout_s=600)
    rows = []
    for name in results[0]:
        runs = zip(*(r[name][0] for r in results), strict=True)
        seconds = [max(e for _, e in one) - min(s for s, _ in one) for one in runs]
        rows.append(
            {
                "topology": topology,
                "method": name,
                "seconds": min(seconds),
                "bound_seconds": bound_s(RANKS, size, rate),
                "predicted_seconds": _predicted(name, topology, size, rate, alpha),
                "max_error": max(r[name][1] for r in results),
                "chosen": name == chosen,
                "latency_s": alpha,
            }
        )
    return rows


def _predicted(name: str, topology: str, size: int, rate: float, alpha: float) -> float:
    if "=" in name or name == "lasp":
        return all_scan_s(RANKS, size, rate, alpha, int(name.split("=")[1]) if "=" in name else 1)
    ranks = 2 if topology == "mesh" and "direct" in name else RANKS  # every pair has a link
    return all_gather_s(ranks, size, rate, alpha)


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each topology what is chosen: how many times faster it is, its time over the bound's and the fastest's."""
    found: dict[str, Any] = {}
    for topology in dict.fromkeys(row["topology"] for row in rows):
        here = {row["method"]: row for row in rows if row["topology"] == topology}
        (best,) = (row for row in here.values() if row["chosen"])
        found[topology] = {
            "chosen": best["method"],
            "to_bound": best["seconds"] / best["bound_seconds"],
            "regret": best["seconds"] / min(row["seconds"] for row in here.values()) - 1,
            **{f"over {name}": here[name]["seconds"] / best["seconds"] for name, _ in BARS},
        }
    return found


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench scan", __doc__.splitlines()[0], "  trainsys bench scan --topology star")
    parser.add_argument("--topology", choices=[*TOPOLOGIES, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5, help="of which the fastest counts")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    whole_numbers("--repeats", str(args.repeats))
    why = missing()
    if why:
        print(json.dumps({"skipped": why}) if args.json else f"skipped: {why}")
        return 0
    topologies = list(TOPOLOGIES) if args.topology == "both" else [args.topology]
    rows = [row for topology in topologies for row in measure(topology, args.repeats)]
    summary = summarize(rows)
    if args.json:
        print(json.dumps({"rows": rows, "summary": summary}))
    else:
        _show(rows, summary)
    exact = all(row["max_error"] <= 1e-5 for row in rows)
    enough = all(summary["star"][f"over {name}"] >= bar for name, bar in BARS) if "star" in summary else True
    return 0 if exact and enough else 1


def _show(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> None:
    for row in rows:
        print(
            f"{row['topology']} {RANKS}  {row['method']:18} {row['seconds'] * 1e3:7.0f} ms  "
            f"{row['seconds'] / row['bound_seconds']:5.2f}x the bound  "
            f"predicted {row['predicted_seconds'] * 1e3:6.0f} ms{'  chosen' if row['chosen'] else ''}"
        )
    for topology, found in summary.items():
        more = ", ".join(f"{found[f'over {name}']:.2f}x faster than {name}" for name, _ in BARS)
        print(f"{topology}: {found['chosen']} {more}, {found['to_bound']:.2f}x the bound, regret {found['regret']:.1%}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
