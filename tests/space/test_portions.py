"""Portions: every element in exactly one, however it is stored, and of every rank's storage about the same share."""

from __future__ import annotations

import numpy as np
import pytest

from tests.space.execution import carry_out
from trainsys.config import ModelConfig, ParallelConfig
from trainsys.models.geometry import split_layers, tensors
from trainsys.space.box import Box
from trainsys.space.build import build_layout, succeed
from trainsys.space.index import Index
from trainsys.space.layout import Layout
from trainsys.space.places import piece_places
from trainsys.space.portions import Held, Portions, advanced, portions_within
from trainsys.space.tensor import LogicalTensor, Space
from trainsys.space.transition import transition

SPACE = Space(
    tensors(ModelConfig(vocab_size=96, dim=64, num_layers=4, num_heads=8, num_kv_heads=2, max_seq_len=8, ffn_dim=96))
)
CHUNK = 128


def mesh(**sizes: int) -> Layout:
    parallel = ParallelConfig(**sizes)
    ranks = parallel.dp * parallel.tp * parallel.pp
    return build_layout(parallel, split_layers(4, parallel.pp), range(ranks), CHUNK, lambda r: 0)


def by_element(portions: Portions, layout: Layout) -> dict[int, np.ndarray]:
    """Tensor -> portion of each element, from the pieces of every rank; they must agree where they overlap."""
    found = {i: np.full(t.shape, -1) for i, t in enumerate(SPACE.tensors)}
    for rank in layout.ranks:
        for piece in layout.storage(SPACE, rank):
            stop = piece.start
            for portion, first, last in portions.of_piece(piece.tensor, layout.tp, piece.start, piece.stop):
                assert first == stop < last
                stop = last
                part = type(piece)(piece.tensor, piece.shard, first, last)
                for place in piece_places(SPACE.tensors[piece.tensor], layout.tp, part, 0):
                    values = found[piece.tensor][place.box.within(Box.whole(SPACE.tensors[piece.tensor].shape))]
                    assert np.isin(values, (-1, portion)).all()
                    values[...] = portion
            assert stop == piece.stop
    return found


MESHES = [{"dp": 4, "zero": 1}, {"tp": 2, "pp": 2, "zero": 1}, {"tp": 4, "dp": 2}, {"pp": 4}]


@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_layouts_agree_on_the_portion_of_every_element(count: int) -> None:
    portions = Portions(SPACE, count, (1, 2, 4), CHUNK)
    first, *rest = (by_element(portions, mesh(**sizes)) for sizes in MESHES)
    for ordinal, logical in enumerate(SPACE.tensors):
        assert ((first[ordinal] >= 0) & (first[ordinal] < count)).all()
        assert all(np.array_equal(first[ordinal], other[ordinal]) for other in rest), logical.name
    assert {int(p) for values in first.values() for p in np.unique(values)} == set(range(count))


@pytest.mark.parametrize("rows", [1, 2, 97, 1000])
@pytest.mark.parametrize("count", [1, 2, 5, 31, 1024])
def test_runs_are_what_counting_row_by_row_gives(rows: int, count: int) -> None:
    space = Space(tuple(LogicalTensor(f"t{i}", (rows, 4), 0) for i in range(5)))
    portions = Portions(space, count, (1,), 12)
    unit = 3
    units = -(-rows // unit)
    for tensor in range(5):
        runs = list(portions.of_rows(tensor, 0, rows))
        assert [a for _, a, _ in runs] + [rows] == [0] + [b for _, _, b in runs]
        counted = [(r // unit * 2**32 // units + tensor * 0x9E3779B9) % 2**32 * count >> 32 for r in range(rows)]
        assert [p for p, a, b in runs for _ in range(a, b)] == counted
        middle = list(portions.of_rows(tensor, rows // 3, rows - rows // 4))
        assert [p for p, a, b in middle for _ in range(a, b)] == counted[rows // 3 : rows - rows // 4]


def test_portions_of_moves_fill_every_rank_and_nothing_twice() -> None:
    src, dst = mesh(tp=2, pp=2, zero=1), mesh(tp=4, dp=2)
    portions = Portions(SPACE, 6, (2, 4), CHUNK)
    whole = {r: transition(SPACE, src, dst, r, src.ranks, lambda r: 0) for r in range(8)}
    parts = {r: portions.of_transition(share) for r, share in whole.items()}
    source, target = Index(SPACE, src, lambda r: 0), Index(SPACE, dst, lambda r: 0)
    old = {r: np.arange(source.numel(r)) + 1_000_000 * r for r in src.ranks}
    sizes = {r: target.numel(r) for r in dst.ranks}
    assert sizes == {r: sum(p.numel for p in dst.storage(SPACE, r)) for r in dst.ranks}
    right, _ = carry_out(old, sizes, [m for s in whole.values() for m in (*s.local, *s.receives)])
    moves = [m for shares in parts.values() for part in shares for m in (*part.local, *part.receives)]
    found, written = carry_out(old, sizes, moves)
    assert all(np.array_equal(found[r], right[r]) and (written[r] == 1).all() for r in dst.ranks)
    for k in range(6):  # both ends name the same moves, in the same order
        for a in range(8):
            for b in range(8):
                sent = [m for m in parts[a][k].sends if m.dst == b]
                assert sent == [m for m in parts[b][k].receives if m.src == a]


def test_what_has_come_keeps_pace_with_what_has_gone() -> None:
    """The case in which runs of whole tensors would not: quarters of every layer become quarters of the layers."""
    src = mesh(dp=4, zero=1)
    dst = succeed(src, ParallelConfig(pp=4, zero=1), (1, 1, 1, 1), range(4), lambda r: 0)
    count = 16
    portions = Portions(SPACE, count, (1,), CHUNK)
    for rank in range(4):
        shares = np.zeros((2, count))
        for row, layout in enumerate((src, dst)):
            for piece in layout.storage(SPACE, rank):
                for portion, first, last in portions.of_piece(piece.tensor, 1, piece.start, piece.stop):
                    shares[row, portion] += last - first
        before, after = shares.sum(1)
        stands = [shares[1, : k + 1].sum() + shares[0, k:].sum() for k in range(count)]
        assert max(stands) < max(before, after) * (1 + 3 / count)


def test_portions_are_as_many_as_the_budget_asks_for() -> None:
    layouts = mesh(dp=4, zero=1), mesh(pp=4)
    largest = max(sum(p.numel for p in lay.storage(SPACE, r)) for lay in layouts for r in lay.ranks) * 12
    assert portions_within(SPACE, layouts, 4 * largest, 4) == 1
    assert portions_within(SPACE, layouts, largest, 4) == 4
    assert portions_within(SPACE, layouts, largest, 8) == 8


def test_what_is_held_where_after_failures() -> None:
    a, b, c = mesh(dp=4, zero=1), mesh(pp=4), mesh(dp=2)
    held = (Held(0, a, 0, 10),)
    assert advanced(held, Held(1, b, 0, 0)) == held
    first = advanced(held, Held(1, b, 0, 6))
    assert first == (Held(1, b, 0, 6), Held(0, a, 6, 10))
    assert advanced(first, Held(2, c, 0, 2)) == (Held(2, c, 0, 2), Held(1, b, 2, 6), Held(0, a, 6, 10))
    assert advanced(first, Held(2, c, 0, 7)) == (Held(2, c, 0, 7), Held(0, a, 7, 10))
    assert advanced(first, Held(2, c, 0, 10)) == (Held(2, c, 0, 10),)
