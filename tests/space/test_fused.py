"""Fused tensors against numpy: the boxes of a local shard are what slicing the fused whole gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.config import ModelConfig
from trainsys.models.geometry import resolve, tensors
from trainsys.space.box import Box
from trainsys.space.fused import Fused
from trainsys.space.tensor import LogicalTensor, Space


@st.composite
def cases(draw: st.DrawFn) -> tuple[Fused, int]:
    """One to four parts, in groups or not, maybe with shared shards, and a tp that cuts them."""
    tp = draw(st.sampled_from([1, 2, 4]))
    groups = draw(st.sampled_from([1, 1, tp, 2 * tp, 3 * tp]))
    dim, rest = draw(st.integers(0, 1)), draw(st.lists(st.integers(1, 3), max_size=1))
    dim = dim if rest else 0
    parts = []
    for number in range(draw(st.integers(1, 4))):
        rows = groups * draw(st.integers(1, 3)) * (tp if groups == 1 else 1)
        shape = [*rest]
        shape.insert(dim, rows)
        most = draw(st.sampled_from([None, 1, 2])) if groups == 1 else None
        parts.append(LogicalTensor(f"p{number}", tuple(shape), 0, dim, max_shards=most))
    return Fused(tuple(parts), groups, draw(st.booleans()), dim), tp


def numbered(fused: Fused) -> list[np.ndarray]:
    first, arrays = 0, []
    for part in fused.parts:
        arrays.append(np.arange(first, first + part.numel).reshape(part.shape))
        first += part.numel
    return arrays


def joined(fused: Fused, arrays: list[np.ndarray]) -> np.ndarray:
    """The whole fused tensor: runs of each part in turn."""
    runs = [np.split(a, fused.groups, axis=fused.dim) for a in arrays]
    return np.concatenate([own[g] for g in range(fused.groups) for own in runs], axis=fused.dim)


def sliced(fused: Fused, tp: int, index: int) -> np.ndarray:
    """What the rank holds, without any box."""
    arrays = numbered(fused)
    if fused.whole_cut or fused.groups > 1:
        return np.split(joined(fused, arrays), tp, axis=fused.dim)[index]
    local = []
    for part, a in zip(fused.parts, arrays, strict=True):
        shards = min(tp, part.max_shards or tp)
        local.append(np.split(a, shards, axis=fused.dim)[index * shards // tp])
    return np.concatenate(local, axis=fused.dim)


def put_together(fused: Fused, tp: int, index: int) -> np.ndarray:
    """The same from the spans; every cell is written once, in storage order."""
    local, arrays, last = np.full(fused.shape(tp, index), -1), numbered(fused), -1
    for span in fused.spans(tp, index):
        to = span.theirs(span.box)
        assert to.start[fused.dim] > last
        last = to.start[fused.dim]
        target = local[to.within(Box.whole(local.shape))]
        assert (target == -1).all()
        target[...] = arrays[span.part][span.box.within(Box.whole(fused.parts[span.part].shape))]
    assert (local >= 0).all()
    return local


@settings(max_examples=200)
@given(cases())
def test_spans_are_what_slicing_gives(case: tuple[Fused, int]) -> None:
    fused, tp = case
    assert np.array_equal(put_together(fused, 1, 0), joined(fused, numbered(fused)))
    for index in range(tp):
        assert np.array_equal(put_together(fused, tp, index), sliced(fused, tp, index))


@settings(max_examples=200)
@given(cases(), st.data())
def test_every_element_once_and_back(case: tuple[Fused, int], data: st.DataObject) -> None:
    """Over the tp ranks each element of a part is held once, or once per copy; and `holders` finds exactly those."""
    fused, tp = case
    arrays, locals_ = numbered(fused), [sliced(fused, tp, index) for index in range(tp)]
    counts = np.bincount(np.concatenate([a.reshape(-1) for a in locals_]), minlength=sum(p.numel for p in fused.parts))
    for number, part in enumerate(fused.parts):
        copies = part.copies(tp) if fused.groups == 1 and not fused.whole_cut else 1
        assert (counts[arrays[number]] == copies).all()
        box = Box.whole(part.shape)
        for d, n in enumerate(part.shape):
            start = data.draw(st.integers(0, n - 1))
            stop = data.draw(st.integers(start + 1, n))
            box = Box((*box.start[:d], start, *box.start[d + 1 :]), (*box.stop[:d], stop, *box.stop[d + 1 :]))
        found = 0
        for index, span in fused.holders(number, box, tp):
            ours = arrays[number][span.box.within(Box.whole(part.shape))]
            theirs = locals_[index][span.theirs(span.box).within(Box.whole(locals_[index].shape))]
            assert np.array_equal(ours, theirs)
            assert span.ours(span.theirs(span.box)) == span.box
            found += span.box.numel
        assert found == copies * box.numel


def test_gate_and_up_cut_together_are_not_cut_apart() -> None:
    """Trap: a fused gate/up whose halves are taken for tp shards. Of two ranks one then has the whole gate."""
    gate, up = LogicalTensor("w1", (8, 3), 0, 0), LogicalTensor("w3", (8, 3), 0, 0)
    apart, together = Fused((gate, up)), Fused((gate, up), whole_cut=True)
    assert [(s.part, str(s.box)) for s in apart.spans(2, 0)] == [(0, "[0:4, 0:3]"), (1, "[0:4, 0:3]")]
    assert [(s.part, str(s.box)) for s in together.spans(2, 0)] == [(0, "[0:8, 0:3]")]
    for tp in (2, 4, 8):
        both = [Fused((gate, up), 8, cut) for cut in (False, True)]
        assert [both[0].spans(tp, i) for i in range(tp)] == [both[1].spans(tp, i) for i in range(tp)]


@pytest.mark.parametrize("tp", [1, 2])
def test_a_known_attention(tp: int) -> None:
    """Four query heads of size 2 in two groups: each rank has whole groups of q, q, k, v."""
    model = resolve(ModelConfig(vocab_size=8, dim=8, num_layers=1, num_heads=4, num_kv_heads=2, max_seq_len=4))
    space = Space(tensors(model))
    parts = tuple(space.tensors[space.ordinal[f"layers.0.attention.{n}.weight"]] for n in ("wq", "wk", "wv"))
    fused = Fused(parts, groups=2)
    group = [(0, 4), (1, 2), (2, 2)]  # part, rows
    spans = [span for index in range(tp) for span in fused.spans(tp, index)]
    assert [(s.part, s.box.shape[0]) for s in spans] == group * 2
    assert [s.origin[0] for s in fused.spans(tp, tp - 1)][:3] == [0, 4, 6]
    assert fused.shape(tp) == (16 // tp, 8)


def test_what_does_not_fit_is_refused() -> None:
    a, b = LogicalTensor("a", (6, 4), 0, 0), LogicalTensor("b", (4, 4), 0, 0)
    with pytest.raises(ValueError, match="b: 4 rows are not 3 equal groups"):
        Fused((a, b), groups=3)
    with pytest.raises(ValueError, match=r"a\+b has 2 groups, not divisible by tp=4"):
        Fused((a, b), groups=2).spans(4, 0)
    with pytest.raises(ValueError, match=r"a\+b has 10 rows, not divisible by tp=4"):
        Fused((a, b), whole_cut=True).spans(4, 0)
    with pytest.raises(ValueError, match=r"c\[4, 5\] cannot be joined to a along dim 0"):
        Fused((a, LogicalTensor("c", (4, 5), 0, 0)))
