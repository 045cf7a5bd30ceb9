"""Boxes against numpy index arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.space.box import Box, cut, flat_boxes

shapes = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


def test_flat_boxes_small_exhaustive() -> None:
    """Every interval of a few shapes: exact cover, memory order, contiguous, at most 2·ndim - 1 boxes."""
    for shape in [(), (7,), (3, 4), (2, 1, 5), (2, 3, 4), (3, 2, 2, 3)]:
        index = np.arange(int(np.prod(shape))).reshape(shape)
        most = 0
        for start in range(index.size):
            for stop in range(start + 1, index.size + 1):
                boxes = flat_boxes(shape, start, stop)
                cut = np.concatenate([index[b.within(Box.whole(shape))].reshape(-1) for b in boxes])
                assert np.array_equal(cut, np.arange(start, stop)), (shape, start, stop, boxes)
                assert all(b.numel > 0 for b in boxes)
                most = max(most, len(boxes))
        assert most <= max(1, 2 * len(shape) - 1)


def test_flat_boxes_bound_is_reached() -> None:
    assert len(flat_boxes((4, 4, 4), 1, 63)) == 5
    assert flat_boxes((4, 4), 3, 3) == []
    assert flat_boxes((4, 4), 4, 12) == [Box((1, 0), (3, 4))]


@given(shapes, st.data())
def test_flat_boxes_random(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = int(np.prod(shape))
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    index = np.arange(size).reshape(shape)
    boxes = flat_boxes(shape, start, stop)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)
    cut = [index[b.within(Box.whole(shape))].reshape(-1) for b in boxes]
    assert np.array_equal(np.concatenate(cut), np.arange(start, stop))


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[tuple[int, ...], Box, Box]:
    shape = draw(shapes)

    def one() -> Box:
        start = tuple(draw(st.integers(0, n - 1)) for n in shape)
        return Box(start, tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)))

    return shape, one(), one()


@settings(max_examples=200)
@given(box_pairs())
def test_intersect_and_within(case: tuple[tuple[int, ...], Box, Box]) -> None:
    shape, a, b = case
    whole = Box.whole(shape)
    index = np.arange(int(np.prod(shape))).reshape(shape)
    expected = np.intersect1d(index[a.within(whole)], index[b.within(whole)])
    common = a.intersect(b)
    assert common == b.intersect(a)
    assert (common is None) == (expected.size == 0)
    if common is not None:
        assert common.numel == expected.size
        assert np.array_equal(index[common.within(whole)].reshape(-1), expected)
        inside = index[a.within(whole)]  # an array that holds exactly a
        assert np.array_equal(inside[common.within(a)], index[common.within(whole)])
    origin = tuple(range(3, 3 + len(shape)))
    assert a.shift(origin).within(Box.whole(shape).shift(origin)) == a.within(whole)


def test_box_prints_as_slices() -> None:
    assert str(Box((0, 2), (4, 3))) == "[0:4, 2:3]"


@given(shapes, st.integers(1, 40))
def test_cut_tiles_in_order(shape: tuple[int, ...], limit: int) -> None:
    index = np.arange(int(np.prod(shape))).reshape(shape)
    parts = cut(Box.whole(shape), limit)
    assert all(0 < part.numel <= limit for part in parts)
    tiles = np.concatenate([index[part.within(Box.whole(shape))].reshape(-1) for part in parts])
    assert np.array_equal(tiles, np.arange(index.size))
    assert len(parts) == 1 or index.size > limit
