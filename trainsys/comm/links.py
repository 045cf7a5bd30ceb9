"""Measured links: a bandwidth per pair of ranks or of nodes, from the cluster file or a CSV file. Imports no torch."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from trainsys.bounds import SLOWEST_GBPS
from trainsys.config import ClusterConfig

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Links:
    """The matrices of a cluster, from its rows to its columns. Where rows are nodes, a pair of ranks has what the pair
    of their nodes has, and within a node what is declared for all.

    Attributes:
        gbps, latency_s: ``[row, row]``, GB/s and seconds.
        ranks_per_row: 1 where rows are ranks.
        intra: GB/s and seconds within a node, where rows are nodes.
    """

    gbps: Array
    latency_s: Array
    ranks_per_row: int
    ranks_per_node: int
    intra: tuple[float, float]

    def between(self, a: int, b: int) -> tuple[float, float]:
        """GB/s and seconds from rank `a` to rank `b`."""
        i, j = a // self.ranks_per_row, b // self.ranks_per_row
        return self.intra if i == j else (float(self.gbps[i, j]), float(self.latency_s[i, j]))

    def slowest(self, ranks: Sequence[int]) -> tuple[float, float]:
        """The least bandwidth and the highest latency among all pairs of `ranks`, two at least."""
        rows = Counter(rank // self.ranks_per_row for rank in ranks)
        found = [self.intra] if max(rows.values()) > 1 else []
        if len(rows) > 1:
            at = np.ix_(list(rows), list(rows))
            found.append((float(self._apart[at].min()), float(self.latency_s[at].max())))
        return min(gbps for gbps, _ in found), max(latency_s for _, latency_s in found)

    def direct(self, ranks: Sequence[int]) -> float:
        """Seconds until each of `ranks` has sent every other 1 GB, all at once.

        A rank's links within its node share what the fastest of them has, and so do those to other nodes, and all.
        """
        rows, nodes = np.array(ranks) // self.ranks_per_row, np.array(ranks) // self.ranks_per_node
        gbps = self.gbps[np.ix_(rows, rows)]
        gbps = np.where(rows[:, None] == rows[None], self.intra[0], gbps)
        same, others, found = nodes[:, None] == nodes[None], ~np.eye(len(rows), dtype=bool), 0.0
        for kind in (same & others, ~same, others):
            if not kind.any():
                continue
            for axis in (0, 1):  # what each receives, what each sends
                fastest = np.where(kind, gbps, 1e-300).max(axis)
                slowest = float(np.where(kind, gbps, np.inf).min())
                found = max(found, 1 / slowest, float((kind.sum(axis) / fastest)[kind.any(axis)].max()))
        return found

    def ring(self, ranks: Sequence[int], abreast: bool) -> tuple[float, float]:
        """The slowest hop of a ring over `ranks`, two at least, in the order given but node after node.

        `abreast`: between two nodes as many members send at once as the smallest node has, each to its counterpart.
        """
        nodes: dict[int, list[int]] = {}
        for rank in ranks:
            nodes.setdefault(rank // self.ranks_per_node, []).append(rank)
        groups = list(nodes.values())
        lanes = min(map(len, groups)) if abreast else 1
        closes = [groups[0]] if len(groups) == 1 else []  # within one node the ring returns to where it began
        within = [self.between(a, b) for group in groups for a, b in pairwise(group)]
        within += [self.between(group[-1], group[0]) for group in closes]
        across = [
            self.between(a, b)
            for here, there in (pairwise([*groups, groups[0]]) if len(groups) > 1 else ())
            for a, b in (zip(here[:lanes], there[:lanes], strict=True) if abreast else [(here[-1], there[0])])
        ]
        rates = [gbps for gbps, _ in within] + [lanes * gbps for gbps, _ in across]
        return min(rates), max(latency_s for _, latency_s in (*within, *across))

    def range_between_nodes(self, nodes: int) -> tuple[float, float]:
        """The least and the most GB/s between the first `nodes` nodes, two at least."""
        per_node = self.ranks_per_node // self.ranks_per_row
        rows = np.arange(min(len(self.gbps), nodes * per_node)) // per_node
        apart = self.gbps[: len(rows), : len(rows)][rows[:, None] != rows[None]]
        return float(apart.min()), float(apart.max())

    @cached_property
    def _apart(self) -> Array:
        """GB/s with nothing on the diagonal that could be the least."""
        return np.where(np.eye(len(self.gbps), dtype=bool), np.inf, self.gbps)


def measured_links(cluster: ClusterConfig) -> Links | None:
    """What ``cluster.links`` says; None when it says nothing.

    Raises:
        ValueError: one line for an unreadable file or a matrix that cannot be of this cluster.
    """
    links = cluster.links
    if not (links.gbps or links.file):
        if links.latency_s:
            raise ValueError("cluster.links.latency_s needs cluster.links.gbps or cluster.links.file beside it")
        return None
    if links.gbps and links.file:
        raise ValueError(f"cluster.links.gbps and cluster.links.file={links.file} say the same thing; leave one out")
    stamp = _stamp(Path(links.file)) if links.file else 0
    return _checked(cluster, stamp)


@lru_cache(maxsize=8)
def _checked(cluster: ClusterConfig, stamp: int) -> Links:
    """The matrices of `cluster`. `stamp` makes a file that changed be read again."""
    links, rows = cluster.links, cluster.links.gbps
    name = f"cluster.links.file={links.file}" if links.file else "cluster.links.gbps"
    gbps = _matrix(name, _read(Path(links.file)) if links.file else rows, cluster, least=SLOWEST_GBPS)
    per_row = cluster.nodes * cluster.ranks_per_node // len(gbps)
    if links.latency_s:
        latency_s = _matrix("cluster.links.latency_s", links.latency_s, cluster, least=0.0)
        if latency_s.shape != gbps.shape:
            raise ValueError(f"cluster.links.latency_s has {len(latency_s)} rows but {name} has {len(gbps)}")
    else:
        nodes = np.arange(len(gbps)) * per_row // cluster.ranks_per_node
        same = nodes[:, None] == nodes[None]
        latency_s = np.where(same, cluster.intra_node.latency_s, cluster.inter_node.latency_s)
    np.fill_diagonal(latency_s, 0.0)
    intra = (cluster.intra_node.gbps, cluster.intra_node.latency_s)
    return Links(gbps, latency_s, per_row, cluster.ranks_per_node, intra)


def _matrix(name: str, rows: Sequence[Sequence[float]], cluster: ClusterConfig, least: float) -> Array:
    """A square matrix with a row for each rank or each node, and `least` or more off its diagonal."""
    ranks, nodes = cluster.nodes * cluster.ranks_per_node, cluster.nodes
    if len(rows) not in (ranks, nodes):
        raise ValueError(
            f"{name} has {len(rows)} row{'s'[: len(rows) != 1]} but the cluster has {ranks} ranks on {nodes} nodes; "
            f"give a row for each rank or for each node, or change cluster.nodes={nodes}"
        )
    for a, row in enumerate(rows):
        if len(row) != len(rows):
            raise ValueError(f"{name} is not square: row {a} has {len(row)} columns, there are {len(rows)} rows")
    matrix = np.array(rows, dtype=float)
    good = np.isfinite(matrix) & (matrix >= least) | np.eye(len(matrix), dtype=bool)
    if not good.all():
        a, b = map(int, np.argwhere(~good)[0])
        rule = f"positive, {least:g} GB/s or more" if least else "0 or more"
        raise ValueError(f"{name}: from {a} to {b} it is {matrix[a, b]:g}; off the diagonal it must be {rule}")
    own = matrix.diagonal()
    if len(matrix) == ranks and ranks > nodes and own.any():  # rows of nodes may say what is within them
        a = int(np.flatnonzero(own)[0])
        raise ValueError(f"{name}: from {a} to itself it is {own[a]:g}; write 0 on the diagonal")
    return matrix


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f"cluster.links.file={path} cannot be read: {error.strerror}; set it to a CSV file") from None


def _read(path: Path) -> list[list[float]]:
    """Rows of numbers between commas; lines that are empty or begin with # are left out."""
    rows = []
    try:
        with path.open(newline="") as file:
            lines = [line for line in file if line.strip() and not line.startswith("#")]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cluster.links.file={path} cannot be read: {error}; write it as text") from None
    for a, row in enumerate(csv.reader(lines)):
        try:
            rows.append([float(value) for value in row])
        except ValueError as error:
            raise ValueError(f"cluster.links.file={path}: row {a}: {error}; write numbers between commas") from None
    return rows
