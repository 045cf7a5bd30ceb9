"""What the screen says about a change of layout."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from trainsys.config import ParallelConfig
from trainsys.elastic.story import tell_shape
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout


def mesh(dp: int, pp: int, layers: Sequence[int]) -> Layout:
    return build_layout(ParallelConfig(dp=dp, pp=pp, zero=1), layers, range(dp * pp), 64, lambda r: r // 2)


def after(before: Layout, lost: int, parallel: ParallelConfig, layers: Sequence[int]) -> Layout:
    return succeed(before, parallel, layers, [r for r in before.ranks if r != lost], lambda r: r // 2)


@pytest.mark.parametrize(
    ("lost", "replicas", "layers", "says"),
    [
        (0, (1, 2), (2, 2), "dp 2→1 at stage 0"),
        (1, (2, 1), (2, 2), "dp 2→1 at stage 1"),
        (1, (2, 1), (3, 1), "dp2·tp1·pp2 zero1 (2+2 layers) → dp2+1·tp1·pp2 zero1 (3+1 layers)"),
        (1, (3,), (4,), "dp2·tp1·pp2 zero1 → dp3·tp1·pp1 zero1"),
        (1, (1, 1, 1), (1, 1, 2), "dp2·tp1·pp2 zero1 → dp1·tp1·pp3 zero1"),
    ],
)
def test_a_loss(lost: int, replicas: tuple[int, ...], layers: tuple[int, ...], says: str) -> None:
    before = mesh(2, 2, (2, 2))
    parallel = ParallelConfig(pp=len(layers), zero=1, stage_replicas=replicas)
    assert tell_shape(before, after(before, lost, parallel, layers)) == says


def test_the_first_layout_and_no_change() -> None:
    layout = mesh(2, 2, (2, 2))
    assert tell_shape(None, layout) == "layout dp2·tp1·pp2 zero1"
    assert tell_shape(layout, layout) == "the layout stays dp2·tp1·pp2 zero1"
