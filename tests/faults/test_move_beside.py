"""The next layout is made beside the steps: the same bits, no step redone, and whoever dies meanwhile costs no more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_kills import check, train
from trainsys.elastic import agent, preparing, supervisor
from trainsys.elastic.agent import LocalCluster
from trainsys.elastic.beside import Beside
from trainsys.elastic.manage import manage
from trainsys.elastic.recorder import Recorder
from trainsys.elastic.serve import rank_main

BESIDE = "elastic.move=beside"


@pytest.mark.parametrize(
    ("layout", "faults"), [("dp2·pp2 zero1", "join@2,join@2"), ("dp4 zero3", "drain@3:2:backward")], ids=str
)
@pytest.mark.parametrize("way", ["auto", "beside", "pause"])
def test_a_planned_change(
    way: str, layout: str, faults: str, tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    ours = train(tmp_path, layout, faults, f"elastic.move={way}")
    check(ours, undisturbed(layout), ours.config)
    assert ours.faults == []
    assert len(ours.changes) > 1
    assert not any(change.redo for change in ours.changes)


def never_ready(*args: Any) -> None:
    """Body of a rank whose preparation does not end."""
    Beside._bring = lambda self: time.sleep(60)  # type: ignore[method-assign]
    rank_main(*args)


def ends(*args: Any) -> None:
    """Body of a rank that ends as it prepares."""
    Beside._bring = lambda self: os._exit(9)  # type: ignore[method-assign]
    rank_main(*args)


@pytest.mark.parametrize(("body", "faults"), [(never_ready, "join@2,kill@9:1:backward"), (ends, "join@2")])
def test_who_dies_meanwhile(
    body: Any, faults: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    spawn = LocalCluster.spawn

    def start(self: LocalCluster, rank: int, node: int) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if rank == 4:
                patch.setattr(agent, "rank_main", body)
            spawn(self, rank, node)

    monkeypatch.setattr(LocalCluster, "spawn", start)
    ours = train(tmp_path, "dp2·pp2 zero1", faults, BESIDE)
    check(ours, undisturbed("dp2·pp2 zero1"), ours.config)
    assert [fault.rank for fault in ours.faults] == [1 if body is never_ready else 4]
    assert ours.changes[-1].after is not None
    assert (4 in ours.changes[-1].after.ranks) == (body is never_ready)


def slow(*args: Any) -> None:
    """Body of a rank that never keeps up with the steps."""
    bring, replay = Beside._bring, Beside._replay
    Beside._bring = lambda self: (time.sleep(0.5), bring(self))  # type: ignore[method-assign,assignment,return-value]
    Beside._replay = lambda self, what: (time.sleep(0.1), replay(self, what))  # type: ignore
    rank_main(*args)


def impatient(*args: Any) -> None:
    """Body of a manager under which few steps wait to be replayed."""
    preparing.WAITING = 2  # type: ignore[misc]
    manage(*args)


def test_what_a_slow_preparation_lacks_is_done_in_the_pause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    monkeypatch.setattr(agent, "rank_main", slow)
    monkeypatch.setattr(supervisor, "manage", impatient)
    ours = train(tmp_path, "dp2·pp2 zero1", "join@2", BESIDE)
    check(ours, undisturbed("dp2·pp2 zero1"), ours.config)
    joined = ours.changes[-1]
    assert joined.after is not None and 4 in joined.after.ranks
    assert not joined.redo


def fails(*args: Any) -> None:
    """Body of a rank that cannot prepare anything."""
    Beside._bring = lambda self: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    rank_main(*args)


def test_what_cannot_be_prepared_is_done_in_the_pause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    monkeypatch.setattr(agent, "rank_main", fails)
    ours = train(tmp_path, "dp2·pp2 zero1", "join@2", BESIDE)
    check(ours, undisturbed("dp2·pp2 zero1"), ours.config)
    assert [4 in (change.after or ()) for change in ours.changes] == [False, True]
    assert not ours.changes[-1].redo
