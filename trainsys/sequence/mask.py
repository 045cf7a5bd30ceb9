"""Which positions look at which, and how that falls into blocks that an attention kernel can do.

A block is a rectangle of local rows and keys that is all visible (``full``), a square of which each row sees one key
more than the one before (``causal``), or one with a mask of its own (``masked``). What nobody sees is in no block: it
is neither computed nor sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

Kind = Literal["full", "causal", "masked"]
_TILE = 64  # least rows of a tile under a sliding window


@dataclass(frozen=True)
class Mask:
    """What a position may look at: itself and others of its document.

    Attributes:
        causal: not at later ones.
        window: of a causal mask: at itself and the window-1 positions before; 0: at all before.
        documents: first position of each packed document but the first, rising.
    """

    causal: bool = True
    window: int = 0
    documents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.window < 0 or (self.window and not self.causal):
            raise ValueError(f"model.window={self.window} needs a causal mask, and must be 0 (no window) or more")
        if any(a >= b for a, b in pairwise((0, *self.documents))):
            raise ValueError(f"documents={self.documents} must be rising positions after 0")


class Block(NamedTuple):
    """Rows [q_first, q_last) of a run of queries with keys [k_first, k_last) of a run of keys."""

    kind: Kind
    q_first: int
    q_last: int
    k_first: int
    k_last: int


@lru_cache(maxsize=1 << 16)
def blocks(q: range, k: range, mask: Mask) -> tuple[Block, ...]:
    """The blocks of queries at positions `q` and keys at positions `k`; every visible pair is in exactly one."""
    if not q or not k:
        return ()
    if not mask.documents:
        return tuple(_of_one_document(q, k, mask))
    found = []
    plain = Mask(mask.causal, mask.window)
    for first, end in pairwise((0, *mask.documents, max(q[-1], k[-1], mask.documents[-1]) + 1)):
        (qa, qb), (ka, kb) = _within(q, first, end), _within(k, first, end)
        found += [Block(kind, a + qa, b + qa, c + ka, d + ka) for kind, a, b, c, d in blocks(q[qa:qb], k[ka:kb], plain)]
    return tuple(found)


def sees(q: tuple[range, ...], k: range, mask: Mask) -> bool:
    """Whether any of the queries looks at any of the keys."""
    return any(blocks(run, k, mask) for run in q)


def _within(run: range, first: int, end: int) -> tuple[int, int]:
    """The indices of `run` whose positions lie in [first, end)."""
    return tuple(min(max(-((run.start - at) // run.step), 0), len(run)) for at in (first, end))  # type: ignore[return-value]


def _of_one_document(q: range, k: range, mask: Mask) -> Iterator[Block]:
    if not mask.causal:
        yield Block("full", 0, len(q), 0, len(k))
    elif mask.window:
        yield from _windowed(q, k, mask.window)
    elif k[-1] <= q[0]:
        yield Block("full", 0, len(q), 0, len(k))
    elif q.step == k.step or min(len(q), len(k)) == 1:
        yield from _causal(q, k)
    elif k[0] <= q[-1]:
        yield Block("masked", _within(q, k[0], q[-1] + 1)[0], len(q), 0, _within(k, 0, q[-1] + 1)[1])


def _causal(q: range, k: range) -> Iterator[Block]:
    """Row i sees keys up to i + shift: nothing of the first rows, a rectangle, a square, and the rows that see all."""
    step = q.step if len(q) > 1 else k.step
    shift = (q.start - k.start) // step
    first = max(0, -shift)
    before = min(shift + first, len(k))
    side = min(len(k) - before, len(q) - first)
    if first >= len(q):
        return
    if before:
        yield Block("full", first, len(q), 0, before)
    if side:
        yield Block("causal", first, first + side, before, before + side)
    if before < len(k) and first + side < len(q):
        yield Block("full", first + side, len(q), before, len(k))


def _windowed(q: range, k: range, window: int) -> Iterator[Block]:
    """Tiles of rows with the keys that any of them sees."""
    tile = max(_TILE, window // q.step)
    for first in range(0, len(q), tile):
        last = min(first + tile, len(q))
        a, b = _within(k, q[first] - window + 1, q[last - 1] + 1)
        if a < b:
            whole = k[b - 1] <= q[first] and k[a] > q[last - 1] - window
            yield Block("full" if whole else "masked", first, last, a, b)


class Call(NamedTuple):
    """One call of a kernel: rows of all local queries, with keys from several segments one after the other.

    Attributes:
        keys: (segment, first key, last key).
        runs: of a ``masked`` one: its positions, of the rows and of the keys.
    """

    kind: Kind
    first: int
    last: int
    keys: tuple[tuple[int, int, int], ...]
    runs: tuple[range, range] | None = None


@lru_cache(maxsize=1 << 14)
def calls(q: tuple[range, ...], segments: tuple[range, ...], mask: Mask) -> tuple[Call, ...]:
    """The fewest calls for all local queries (runs `q`, one after the other) and some segments of keys."""
    full: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    rest, base = [], 0
    for run in q:
        for segment, k in enumerate(segments):
            for kind, a, b, c, d in blocks(run, k, mask):
                if kind == "full":
                    full.setdefault((segment, c, d), []).append((base + a, base + b))
                else:
                    runs = (run[a:b], k[c:d]) if kind == "masked" else None
                    rest.append(Call(kind, base + a, base + b, ((segment, c, d),), runs))
        base += len(run)
    by_rows: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for keys, rows in full.items():
        for span in _joined(rows):
            by_rows.setdefault(span, []).append(keys)
    return (*rest, *(Call("full", a, b, tuple(sorted(keys))) for (a, b), keys in sorted(by_rows.items())))


def _joined(rows: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for a, b in sorted(rows):
        if joined and joined[-1][1] == a:
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return joined
