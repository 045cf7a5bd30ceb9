"""Ranks that are told to leave: their work is moved out before they go, and no step is redone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.faults.test_kills import check, train
from trainsys.config import load
from trainsys.elastic.agent import run_local
from trainsys.elastic.drill_result import redone_for_leaving
from trainsys.elastic.faults import FaultEvent, parse_faults
from trainsys.elastic.recorder import Recorder

from tests.tiny import tiny  # isort: skip

LAYOUTS = ["dp2·pp2 zero1", "dp4 zero3"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_drain_costs_no_step(layout: str, tmp_path: Path, undisturbed: Callable[[str], Recorder]) -> None:
    """Two neighbours at once, which would be too many to lose."""
    ours = train(tmp_path, layout, "drain@4:2:backward,drain@4:3:forward")
    check(ours, undisturbed(layout), ours.config)
    assert sorted(rank for _, rank in ours.drains) == [2, 3]
    assert ours.faults == []
    assert not any(change.redo for change in ours.changes)
    assert ours.changes[-1].after is not None
    assert set(ours.changes[-1].after.ranks) == {0, 1}


def test_who_cannot_be_spared_works_on(tmp_path: Path) -> None:
    alone = ("cluster.nodes=1", "cluster.ranks_per_node=1", "parallel.dp=1", "parallel.pp=1", "train.steps=6")
    config = load(tiny(tmp_path, *alone))
    with Recorder(config, config.run_dir, None) as recorder:
        run_local(config, recorder, [FaultEvent("drain", 2, 0, "forward")])
    assert recorder.next_step == 6
    assert recorder.drains == []


def test_a_drain_is_written_as_a_kill_is() -> None:
    (event,) = parse_faults("drain@3:1:backward", 4, 12)
    assert str(event) == "drain@3:1:backward"
    with pytest.raises(ValueError, match="strikes rank 1 a second time"):
        parse_faults("drain@3:1,kill@5:1", 4, 12)


@pytest.mark.parametrize(
    ("gone", "redo", "count"), [((3,), True, 1), ((3,), False, 0), ((2, 3), True, 0), ((2,), True, 0), ((), True, 0)]
)
def test_only_what_leaving_alone_cost_is_its(gone: tuple[int, ...], redo: bool, count: int) -> None:
    """Rank 3 left as told; a step redone for a rank that was lost, or for no loss at all, is none of its."""
    before = SimpleNamespace(ranks=(0, 1, 2, 3))
    after = SimpleNamespace(ranks=tuple(rank for rank in before.ranks if rank not in gone))
    first = SimpleNamespace(before=None, after=before, redo=False)
    recorder = SimpleNamespace(
        drains=[(5, 3)], changes=[first, SimpleNamespace(before=before, after=after, redo=redo)]
    )  # fmt: skip
    assert redone_for_leaving(cast(Any, recorder)) == count
