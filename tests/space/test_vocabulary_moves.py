"""Parts of the vocabulary are tensors like others: a change of pp moves whole ones, each to one stage."""

from __future__ import annotations

import pytest

from tests.space.execution import arrives_whole
from trainsys.config import ModelConfig, ParallelConfig
from trainsys.models.geometry import split_layers, tensors
from trainsys.models.vocab_parts import OUTPUT, TABLE, whole_of
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout
from trainsys.space.tensor import Space

LAYERS, PARTS = 4, 5


def model(tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=22, dim=4, num_layers=LAYERS, num_heads=1, max_seq_len=4, vocab_parts=PARTS, tied=tied
    )


def mesh(pp: int, dp: int, zero: int = 1) -> ParallelConfig:
    return ParallelConfig(pp=pp, dp=dp, zero=zero, vocabulary="two_barriers")


def layout(pp: int, dp: int, zero: int = 1) -> Layout:
    return build_layout(mesh(pp, dp, zero), split_layers(LAYERS, pp), range(pp * dp), 7, lambda r: r // 2, PARTS)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pp", [1, 2, 3, 4])
def test_every_part_is_on_one_stage_and_no_layer_there(pp: int, tied: bool) -> None:
    own, config = layout(pp, 2), model(tied)
    assert own.layers(LAYERS) == split_layers(LAYERS, pp)
    assert len(own.runs) == pp and own.vp == 1
    found = {t.name: own.stages_of(t) for t in tensors(config) if t.block > LAYERS}
    assert all(len(stages) == 1 for stages in found.values())
    assert len(found) == PARTS * (1 if tied else 2)
    counts = [sum(stages == (s,) for stages in found.values()) for s in range(pp)]
    assert max(counts) - min(counts) <= (1 if tied else 2)
    assert Layout.from_dict(own.to_dict()) == own


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("before", "after"), [((2, 2), (4, 1)), ((4, 1), (2, 2)), ((4, 1), (3, 1)), ((1, 4), (2, 2))])
def test_a_change_of_pp_moves_parts(before: tuple[int, int], after: tuple[int, int], tied: bool) -> None:
    space = Space(tensors(model(tied)))
    src = layout(*before)
    alive = range(after[0] * after[1])
    dst = succeed(src, mesh(*after), split_layers(LAYERS, after[0]), alive, lambda r: r // 2, PARTS)
    assert arrives_whole(space, src, dst, src.ranks, lambda r: r // 2) is not None


def test_the_same_blocks_keep_their_seats() -> None:
    src = layout(2, 2)
    dst = succeed(src, mesh(2, 1), split_layers(LAYERS, 2), [0, 1], lambda r: r // 2, PARTS)
    assert [s.intervals for s in dst.stages] == [s.intervals for s in src.stages]


def test_parts_are_the_rows_of_the_whole() -> None:
    config = model(tied=False)
    at = dict.fromkeys((TABLE, OUTPUT), 0)
    for tensor in tensors(config):
        name, first = whole_of(config, tensor.name)
        if name in at:
            assert first == at[name]
            at[name] += tensor.shape[0]
    assert set(at.values()) == {config.vocab_size}
