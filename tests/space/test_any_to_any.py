"""Every pair of more than forty layouts of eight ranks: the state arrives whole, written once, with the least bytes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.space.execution import carry_out, plan
from tests.space.strategies import numbered, storage
from trainsys.config import ParallelConfig
from trainsys.models.geometry import split_layers
from trainsys.space.build import build_layout
from trainsys.space.layout import Layout
from trainsys.space.tensor import EMBED, LogicalTensor, Space

RANKS, LAYERS = range(8), 8
SPACE = Space((
    LogicalTensor("embedding", (16, 6), EMBED, 0, (EMBED, LAYERS)),
    *(LogicalTensor(f"{i}.wk", (4, 6), i, 0, max_shards=2) for i in range(0, LAYERS, 2)),
    *(LogicalTensor(f"{i}.wo", (6, 16), i, 1) for i in range(1, LAYERS, 2)),
    *(LogicalTensor(f"{i}.expert{e}", (8, 3), i, 0, expert=e, num_experts=4) for i in (1, 6) for e in range(4)),
    LogicalTensor("norm", (6,), LAYERS),
))  # fmt: skip


def mesh(zero: int, dp: int = 1, tp: int = 1, pp: int = 1, layers: tuple[int, ...] = (), **more: object) -> Layout:
    parallel = ParallelConfig(dp=dp, tp=tp, pp=len(layers) or pp, zero=zero, **more)  # type: ignore[arg-type]
    return build_layout(parallel, layers or split_layers(LAYERS, pp * parallel.vp), RANKS, 61, lambda r: r // 4)


EVEN = [(dp, tp, 8 // dp // tp) for dp in (1, 2, 4, 8) for tp in (1, 2, 4, 8) if dp * tp <= 8]
LAYOUTS = [
    *(mesh(i % 2, *degrees) for i, degrees in enumerate(EVEN)),
    *(mesh(dp % 3 // 2, dp) for dp in (3, 5, 7)),
    *(mesh(1, 4, 1, layers=layers) for layers in ((1, 7), (5, 3))),
    *(mesh(zero, 2, 2, layers=(6, 2)) for zero in (0, 2)),
    mesh(0, 1, 2, layers=(1, 1, 1, 5)),
    mesh(0, 1, 1, 7),
    mesh(1, 2, layers=(3, 1, 3, 1)),
    mesh(1, stage_replicas=(3, 5), pp=2),
    mesh(0, stage_replicas=(1, 2, 4), layers=(2, 5, 1)),
    mesh(1, tp=2, stage_replicas=(1, 3), pp=2),
    mesh(1, tp=2, stage_replicas=(2, 1, 1), layers=(4, 3, 1)),
    *(mesh(ep // 4, dp, 1, ep=ep) for dp, ep in ((8, 2), (8, 4), (4, 4), (7, 4))),
    *(mesh(3, dp, tp, 8 // dp // tp, ep=2) for dp, tp in ((2, 2), (2, 4), (4, 2), (4, 1))),
    *(mesh(zero, 2, 1, 4, vp=2) for zero in (0, 2)),
    *(mesh(1, 1, tp, pp, vp=vp) for tp, pp, vp in ((2, 4, 2), (4, 2, 4))),
    *(mesh(zero, dp, tp, 8 // dp // tp // 2, cp=2) for dp, tp in ((4, 1), (2, 2), (1, 1)) for zero in (0, 3)),
    mesh(1, 1, 2, 2, cp=2, vp=2, ep=2),
    mesh(1, 2, 2, 2, order="dp,pp,tp,cp"),
    mesh(0, 2, 2, 2, order="pp,tp,cp,dp"),
]


def name(layout: Layout) -> str:
    return f"{layout} {'+'.join(map(str, layout.layers(LAYERS)))}"


def test_there_are_forty_different_ones() -> None:
    assert len(set(LAYOUTS)) == len(LAYOUTS) >= 40


@cache
def stored(layout: Layout) -> dict[int, np.ndarray]:
    """What each rank's storage must hold."""
    full = numbered(SPACE)
    return {rank: storage(full, SPACE, layout, rank) for rank in layout.ranks}


@pytest.mark.parametrize("src", LAYOUTS, ids=name)
def test_to_all_others(src: Layout) -> None:
    held = np.zeros((len(RANKS), SPACE.numel), dtype=bool)
    for rank in src.ranks:
        held[rank, stored(src)[rank]] = True
    for dst in LAYOUTS:
        shares = plan(SPACE, src, dst, src.ranks, lambda r: r // 4)
        assert shares is not None
        moves = [m for share in shares.values() for m in (*share.local, *share.receives)]
        new, written = carry_out(stored(src), {r: len(values) for r, values in stored(dst).items()}, moves)
        for rank, expected in stored(dst).items():
            assert np.array_equal(new[rank], expected), (name(dst), rank)
            assert (written[rank] == 1).all(), (name(dst), rank)
            received = sum(m.box.numel for m in shares[rank].receives)
            assert received == (~held[rank, expected]).sum(), (name(dst), rank)
