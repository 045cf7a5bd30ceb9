"""How a sequence is cut over cp teams. A layout gives each team runs of positions; every position has one owner.

Under a causal mask a late position looks at more than an early one, so what makes the teams' work equal is not equal
lengths alone. Any length is cut; teams get equally many positions where the layout's number of chunks divides it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

Positions = tuple[range, ...]  # of one team: runs of positions, in rising order of their first; a run may be empty
Layout = tuple[Positions, ...]  # of every team


def _chunks(positions: range, count: int) -> list[range]:
    ends = [i * len(positions) // count for i in range(count + 1)]
    return [positions[a:b] for a, b in pairwise(ends)]


def contiguous(seq_len: int, cp: int) -> Layout:
    """Team i takes the i-th of cp chunks: what recurrences want. The last team has nearly twice the average work."""
    return tuple((chunk,) for chunk in _chunks(range(seq_len), cp))


def zigzag(seq_len: int, cp: int) -> Layout:
    """Of 2·cp chunks team i takes i and 2·cp-1-i: equal work with every other team's keys, too (Llama 3,
    arXiv:2407.21783, §3.3.2)."""
    return _zigzag(range(seq_len), cp)


def striped(seq_len: int, cp: int) -> Layout:
    """Team i takes every cp-th position from i on (Striped Attention, Brandon et al. 2023, arXiv:2311.09431)."""
    return tuple((range(i, seq_len, cp),) for i in range(cp))


def per_document(seq_len: int, cp: int, documents: Sequence[int] = ()) -> Layout:
    """Zigzag within every document, so that packed ones are shared evenly, too.

    Args:
        documents: first position of each document but the first.
    """
    ends = [0, *documents, seq_len]
    cut = [_zigzag(range(a, b), cp) for a, b in pairwise(ends)]
    return tuple(tuple(run for document in cut for run in document[i] if run) for i in range(cp))


def _zigzag(positions: range, cp: int) -> Layout:
    every = _chunks(positions, 2 * cp)
    return tuple((every[i], every[2 * cp - 1 - i]) for i in range(cp))


LAYOUTS: dict[str, Callable[[int, int], Layout]] = {
    "contiguous": contiguous,
    "zigzag": zigzag,
    "striped": striped,
    "per_document": per_document,
}


def num_positions(positions: Positions) -> int:
    """How many a team has."""
    return sum(map(len, positions))


def sliced(positions: Positions, slices: int) -> list[Positions]:
    """Each run in `slices` nearly equal parts: slice s has the s-th of every run, so that slices, too, are balanced."""
    cut = [_chunks(run, slices) for run in positions]
    return [tuple(parts[s] for parts in cut) for s in range(slices)]
