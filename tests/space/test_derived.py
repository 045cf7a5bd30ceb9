"""Block scales and factored moments move like any other tensor, and lie where their parameter does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elastic.test_transit import filled
from tests.space.execution import arrives_whole
from tests.space.strategies import NodeOf, cases, changes
from trainsys.config import ParallelConfig, RunConfig
from trainsys.elastic.census import check_census, take_census
from trainsys.elastic.checkpoint import load_state, save_state
from trainsys.parallel.state import FlatState
from trainsys.space.box import Box
from trainsys.space.build import build_layout
from trainsys.space.derived import block_scales, column_moment, columns_of, row_moment, rows_of, scales_of
from trainsys.space.layout import Layout
from trainsys.space.tensor import SLOTS, LogicalTensor, Space

Derived = list[tuple[LogicalTensor, list[LogicalTensor]]]


def extended(space: Space, blocks: Sequence[int]) -> tuple[Space, Derived]:
    """The space with what can be derived from each of its tensors, and which came from which."""
    derived: Derived = []
    for tensor, block in zip(space.tensors, blocks, strict=False):
        own = [block_scales(tensor, block)] if tensor.shape else []
        own += [row_moment(tensor), column_moment(tensor)] if len(tensor.shape) > 1 else []
        derived.append((tensor, own))
    return Space((*space.tensors, *(t for _, own in derived for t in own))), derived


BLOCKS = st.lists(st.integers(1, 5), min_size=6, max_size=6)
Change = tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]


@settings(max_examples=120)
@given(changes(), BLOCKS)
def test_any_change_moves_them_exactly(change: Change, blocks: list[int]) -> None:
    plain, src, dst, alive, node_of = change
    space, _ = extended(plain, blocks)
    arrives_whole(space, src, dst, alive, node_of)


@settings(max_examples=150)
@given(cases(), BLOCKS)
def test_who_holds_a_shard_holds_what_belongs_to_it(case: tuple[Space, Layout, NodeOf], blocks: list[int]) -> None:
    """Exactly that where the cut is aligned, more where it is not. Expected elements come from numpy, without boxes."""
    plain, layout, _ = case
    derived = extended(plain, blocks)[1]
    for (tensor, own), block in zip(derived, blocks, strict=False):
        for extra in own:
            kind = extra.name.removeprefix(f"{tensor.name}.")
            of = numbers_of(tensor, extra, kind, block)
            for rank in layout.ranks:
                assert layout.holds(extra, rank) == layout.holds(tensor, rank)
                shard = layout.where(rank)[2]
                mine = tensor.local_box(layout.tp, shard)
                needed = np.unique(of[mine.within(Box.whole(tensor.shape))])
                box = extra.local_box(layout.tp, shard)
                has = np.unique(np.arange(extra.numel).reshape(extra.shape)[box.within(Box.whole(extra.shape))])
                assert np.isin(needed, has).all()
                rows = 0 if tensor.split is None else mine.shape[tensor.split]
                if kind != "scales" or tensor.split is None or rows % block == 0:
                    assert np.array_equal(needed, has)


def numbers_of(tensor: LogicalTensor, extra: LogicalTensor, kind: str, block: int) -> np.ndarray:
    """Of each element of the parameter, the number of the derived element that belongs to it."""
    numbers = np.arange(extra.numel).reshape(extra.shape)
    if kind == "scales":
        return numbers[np.ix_(*(np.arange(n) // block for n in tensor.shape))]
    dim = len(tensor.shape) - (1 if kind == "exp_avg_sq_row" else 2)
    return np.broadcast_to(np.expand_dims(numbers, dim), tensor.shape)


@given(cases(), BLOCKS, st.data())
def test_boxes_of_boxes(case: tuple[Space, Layout, NodeOf], blocks: list[int], data: st.DataObject) -> None:
    """`scales_of`, `rows_of` and `columns_of` name the elements that belong to a box, and no others."""
    for (tensor, own), block in zip(extended(case[0], blocks)[1], blocks, strict=False):
        start = tuple(data.draw(st.integers(0, n - 1)) for n in tensor.shape)
        box = Box(start, tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, tensor.shape, strict=True)))
        for extra in own:
            kind = extra.name.removeprefix(f"{tensor.name}.")
            part = scales_of(box, block) if kind == "scales" else {"row": rows_of, "col": columns_of}[kind[-3:]](box)
            named = np.arange(extra.numel).reshape(extra.shape)[part.within(Box.whole(extra.shape))]
            needed = numbers_of(tensor, extra, kind, block)[box.within(Box.whole(tensor.shape))]
            assert np.array_equal(np.unique(named), np.unique(needed))


def test_known_cuts() -> None:
    """Six blocks of 128 rows: whole blocks for 2, 3 and 6 ranks; of 4 ranks two share three blocks; 8 do likewise."""
    scales = block_scales(LogicalTensor("w", (768, 300), 0, 0))
    assert (scales.name, scales.shape) == ("w.scales", (6, 3))
    assert {tp: scales.shards(tp) for tp in (1, 2, 3, 4, 6, 8)} == {1: 1, 2: 2, 3: 3, 4: 2, 6: 6, 8: 2}
    assert [str(scales.local_box(4, t)) for t in range(4)] == ["[0:3, 0:3]"] * 2 + ["[3:6, 0:3]"] * 2
    assert block_scales(LogicalTensor("w", (300, 768), 0, 0)).shards(4) == 1, "300 rows are no whole blocks"
    kv = LogicalTensor("wk", (512, 64), 3, 0, max_shards=2, expert=1, num_experts=4)
    assert block_scales(kv).shards(8) == 2
    assert (block_scales(kv).block, block_scales(kv).expert) == (3, 1)
    row, column = row_moment(kv), column_moment(kv)
    assert (row.shape, row.split, row.max_shards) == ((512,), 0, 2)
    assert (column.shape, column.split, column.max_shards) == ((64,), None, None)
    assert column_moment(LogicalTensor("w2", (5, 6, 8), 0, 2)).split == 1
    assert scales.token() == "w.scales[6/gcd(tp, 6), 3]"


def test_what_has_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm\[8\] has one dim, of which no moment is factored"):
        row_moment(LogicalTensor("norm", (8,), 0))
    with pytest.raises(ValueError, match="has no blocks of 0 elements"):
        block_scales(LogicalTensor("w", (8, 8), 0), 0)


SPACE, _ = extended(
    Space((
        LogicalTensor("w1", (24, 20), 0, 0), LogicalTensor("w2", (20, 24), 1, 1), LogicalTensor("norm", (20,), 1),
        *(LogicalTensor(f"e{e}", (16, 6), 0, 0, expert=e, num_experts=2) for e in range(2)),
    )), [4, 4, 4, 4, 3],
)  # fmt: skip
LAYOUTS = [{"tp": 4}, {"dp": 4, "ep": 2, "zero": 3}, {"tp": 2, "pp": 2, "zero": 1}]


def mesh(parallel: dict[str, int]) -> Layout:
    config = ParallelConfig(**parallel)  # type: ignore[arg-type]
    return build_layout(config, [1] * config.pp if config.pp > 1 else [2], range(4), 10, lambda r: r // 2)


@pytest.mark.parametrize("parallel", LAYOUTS, ids=str)
def test_census_and_checkpoint_count_them(parallel: dict[str, int], tmp_path: Path) -> None:
    """Hashes do not depend on the cut and a wrong scale changes them; a checkpoint of one rank is read on any."""
    cpu, one, layout = torch.device("cpu"), mesh({}), mesh(parallel)
    config = RunConfig(run_dir=str(tmp_path))
    path = save_state(config, SPACE, one, 0, 3, filled(SPACE, one, 0), None)
    new = {r: load_state(path, SPACE, layout, r, torch.float32, cpu) for r in layout.ranks}
    for rank, state in new.items():
        right = filled(SPACE, layout, rank)
        assert all(torch.equal(state.slots[slot], right.slots[slot]) for slot in SLOTS)

    def check() -> None:
        states = {**{r: FlatState((), torch.float32, cpu) for r in one.ranks}, **new}
        old = filled(SPACE, one, 0)
        reports = {r: take_census(SPACE, r, one, (0,), old if r == 0 else None, layout, states[r], 3) for r in states}
        check_census(SPACE, reports, True, 3)

    check()
    scale = next(p for p in new[1].pieces if SPACE.tensors[p.tensor].name.endswith(".scales"))
    new[1].view("master", scale)[0] += 1
    with pytest.raises(ValueError, match=r"census: .*\.scales"):
        check()
