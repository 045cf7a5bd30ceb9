"""The cells of `trainsys bench attention` and how each is measured: wires, sizes, choices, rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks._attention_body import DIM, Cell, calibrate, connect, dense, enter, errors, measure
from trainsys.comm.topology import Link
from trainsys.comm.wires import Wires, mesh, star, two_level
from trainsys.sequence.layouts import LAYOUTS
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place
from trainsys.sequence.price import Price, Rates, Shape, price
from trainsys.sequence.select import choices


def asymmetric() -> Wires:
    """A mesh of 4 with links round the square three times as fast as its diagonals, two of them slow one way."""
    wires = mesh(4, 0.018)
    slow = {(0, 2): 0.006, (2, 0): 0.006, (1, 3): 0.006, (3, 1): 0.006, (1, 0): 0.009, (3, 2): 0.009}
    links = {edge: Link(slow.get(edge, link.gbps), 0.0) for edge, link in wires.links.items()}
    return replace(wires, name="asymmetric mesh n=4", links=links)


# rates that two cores can carry beside attention, on all links at once
TOPOLOGIES: dict[str, Callable[[], Wires]] = {
    "mesh4": lambda: mesh(4, 0.0125),
    "star4": lambda: star(4, 0.025),
    "two_level": lambda: two_level(2, 2, 0.05, 0.015),
    "mesh5": lambda: mesh(5, 0.01),
    "asymmetric4": asymmetric,
}


def wires_of(name: str) -> Wires:
    """Raises ValueError for an unknown name."""
    if name not in TOPOLOGIES:
        raise ValueError(f"unknown topology {name!r}; there are {', '.join(TOPOLOGIES)}")
    return TOPOLOGIES[name]()


def with_payload(wires: Wires, part: float) -> Wires:
    """Wires whose rates are what messages get."""
    return replace(wires, links={edge: Link(link.gbps * part, link.latency_s) for edge, link in wires.links.items()})


LENGTHS = (640, 1024, 1536)
SHAPE = Shape(batch=1, element=4, kept=4)
SLOW = 2.0  # times the fastest, and
COLD_S = 0.03  # more, for what a first run does beside: measured no more


def documents(seq_len: int) -> Mask:
    """Four packed documents, of 3/8, 1/16, 5/16 and 1/4 of the positions."""
    return Mask(documents=(seq_len * 6 // 16, seq_len * 7 // 16, seq_len * 12 // 16))


MASKS: dict[str, Callable[[int], Mask]] = {"causal": lambda _: Mask(), "documents": documents}


def place_of(cell: Cell, layout: str = "zigzag") -> Place:
    cut = LAYOUTS[layout](cell.seq_len, cell.wires.num_ranks)
    return Place(cut, cell.mask, cell.wires, cell.heads, cell.kv_heads, DIM, DIM)


def price_of(cell: Cell, method: str, rates: Rates) -> Price:
    """Of ``method`` or ``method:layout``."""
    name, _, layout = method.partition(":")
    place = place_of(cell, layout or "zigzag")
    return price(METHODS[name](place), place, SHAPE, rates)


def rates_in(lab: Any) -> Rates:
    """Calibrated on the ranks of a laboratory, all at once on the cores of this machine."""
    cores = float(len(os.sched_getaffinity(0)))
    found = lab.run(calibrate)
    n = len(found)
    rate = {key: [sum(one[key][i] for one in found) for i in range(len(values))] for key, values in found[0].items()}
    products = 2.0 * 8 * 512 * 512 * 2 * DIM
    busy = min(cores, n)
    return Rates(
        max(rate["forward"]) / busy * products,  # the best round: what else the machine does is not the ranks'
        max(rate["backward"]) / busy * products * 2.5,
        busy / max(rate["small"]),
        rate["message_s"][0] / n / (n - 1),
        cores,
    )


class References:
    """What is right, by dense attention in float64, in files that ranks read; and how far float32 is from it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trainsys-attention-")
        self._known: dict[object, tuple[str, list[float]]] = {}

    @classmethod
    @cache
    def shared(cls) -> References:
        """Those of this process."""
        return cls()

    def of(self, cell: Cell) -> tuple[str, list[float]]:
        """File, and relative errors of dense attention in float32."""
        key = (cell.heads, cell.kv_heads, cell.seq_len, cell.mask)
        if key not in self._known:
            path = str(Path(self._folder.name) / f"{len(self._known)}.pt")
            right = dense(*key, torch.float64)
            plain = errors(dense(*key, torch.float32), right, [float(t.abs().max()) for t in right])
            torch.save(right, path)
            self._known[key] = path, plain
        return self._known[key]


def run_cell(
    lab: Any, cell: Cell, rates: Rates, only: Sequence[str], extra: Sequence[str], references: References, repeats: int
) -> list[dict[str, Any]]:
    """Two rows per method, of the forward and of both halves.

    Args:
        lab: connected.
        only: methods; empty: all that serve the place.
        extra: more to measure, such as peers; they are not chosen.
    """
    path, plain = references.of(cell)
    lab.run(enter, cell, path)
    found = choices(place_of(cell), SHAPE, rates, canonical=False)
    serving = [choice.method for choice in found if not only or choice.method in only]
    chosen = {
        "forward": min((c for c in found if c.method in serving), key=lambda c: c.price.forward_s).method,
        "both": serving[0],
    }
    methods = [*serving, *extra]
    spans, wrong, counted = {}, {}, {}
    for method in methods:
        lab.mark()
        once = lab.run(measure, [method], 1, True)
        counted[method] = lab.counters()
        spans[method], wrong[method] = _spans(once, method), [one[method][1] for one in once]
    for _ in range(repeats):
        best = min(both for turns in spans.values() for _, both in turns)
        rest = [m for m in methods if min(b for _, b in spans[m]) <= SLOW * best + COLD_S or _is_cold(m, spans[m])]
        turn = lab.run(measure, rest, 1, False)
        for method in rest:
            spans[method] += _spans(turn, method)
    rows = []
    for method in methods:
        priced = None if method.startswith("peer:") else price_of(cell, method, rates)
        for i, direction in enumerate(("forward", "both")):
            rows.append(
                {
                    "topology": cell.topology,
                    "n": cell.wires.num_ranks,
                    "heads": f"{cell.heads}:{cell.kv_heads}",
                    "length": cell.seq_len,
                    "mask": cell.mask_name,
                    "method": method,
                    "direction": direction,
                    "seconds": min(span[i] for span in spans[method]),
                    "repeats": len(spans[method]),
                    "predicted_s": priced and (priced.seconds if i else priced.forward_s),
                    "bound_seconds": priced and (priced.bound_s if i else priced.forward_bound_s),
                    "wire_bytes": sum(counted[method].values()) if i else None,
                    "formula_bytes": round(sum(priced.edges.values())) if i and priced else None,
                    "max_error": max(e for one in wrong[method] for e in (one if i else one[:1])),
                    "errors": [max(kind) for kind in zip(*wrong[method], strict=True)],
                    "plain_errors": plain,
                    "chosen": method == chosen[direction],
                }
            )
    return rows


def _is_cold(method: str, spans: Sequence[Any]) -> bool:
    """A peer cannot be made to plan before its first run, which is not held against it."""
    return method.startswith("peer:") and len(spans) < 3


def _spans(results: Sequence[Any], method: str) -> list[tuple[float, float]]:
    """Seconds of the forward and of both halves, from the first rank's begin to the last one's end."""
    found = []
    for turn in zip(*(result[method][0] for result in results), strict=True):
        begin = min(start for start, _, _ in turn)
        found.append((max(middle for _, middle, _ in turn) - begin, max(end for _, _, end in turn) - begin))
    return found


def connected(lab: Any) -> Rates:
    """Connect the ranks of a laboratory and calibrate."""
    lab.run(connect)
    return rates_in(lab)
