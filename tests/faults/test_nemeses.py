"""What strikes inside a rank, without a run around it: a fault that finds nothing to strike says why."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainsys.config import RunConfig
from trainsys.elastic.drill_result import idle_victims, with_reasons
from trainsys.elastic.faults import FaultEvent, Injector
from trainsys.elastic.faults.notes import nothing_there, read_notes


def struck(event: FaultEvent, folder: Path, **parts: Any) -> list[str]:
    """Faults noted after `event` was due on its rank."""
    victim: Any = SimpleNamespace(config=RunConfig(run_dir=str(folder)), rank=event.rank, **parts)
    injector = Injector([event], event.rank, folder / "faults", victim=victim)
    injector.step = event.step
    injector.at(event.phase)
    return [note["event"] for note in read_notes(folder / "faults")]


@pytest.mark.parametrize("kind", ["cut", "oneway"])
def test_a_peer_that_is_dead_cannot_be_cut_off(kind: str, tmp_path: Path) -> None:
    """And whoever was to cut goes on."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    event = FaultEvent(kind, 3, 0, peer=1)
    assert struck(event, tmp_path, comm=SimpleNamespace(groups=())) == []
    assert nothing_there(tmp_path / "faults") == {str(event): "rank 1 has not announced itself"}
    (tmp_path / "faults" / "1.pid").write_text(str(gone.pid))
    assert struck(event, tmp_path, comm=SimpleNamespace(groups=())) == []
    assert "rank 1 is gone" in nothing_there(tmp_path / "faults")[str(event)]


def test_ranks_that_do_not_talk_cannot_be_cut_off(tmp_path: Path) -> None:
    event = FaultEvent("cut", 3, 0, peer=1)
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "1.pid").write_text(str(os.getpid()))
    assert struck(event, tmp_path, comm=SimpleNamespace(groups=())) == []
    nothing = nothing_there(tmp_path / "faults")
    assert with_reasons(["kill@2:0", str(event)], nothing) == (
        "kill@2:0, cut@3:0+1:forward (there is no open connection to rank 1)"
    )


def idle(
    tmp_path: Path, event: FaultEvent, earlier: Sequence[FaultEvent], *stands: tuple[int, tuple[int, ...]]
) -> bool:
    """Whether an event that found nothing is an idle victim, after others that struck."""
    assert struck(event, tmp_path, comm=SimpleNamespace(groups=()), layout=None, state=None) == []
    assert str(event) in nothing_there(tmp_path / "faults")
    changes = [SimpleNamespace(step=step, after=SimpleNamespace(ranks=ranks)) for step, ranks in stands]
    run: Any = SimpleNamespace(run_dir=tmp_path, changes=changes)
    return idle_victims([*earlier, event], run, [str(event)]) == [str(event)]


def test_a_pair_is_idle_only_where_the_record_shows_that_it_is_apart(tmp_path: Path) -> None:
    """That the fault found nothing is not enough: then a nemesis that finds no sockets any more would pass."""
    cut, joins = FaultEvent("cut", 9, 0, peer=1), FaultEvent("cut", 9, 0, "transfer", peer=2)
    before, late = FaultEvent("oneway", 5, 1, peer=0), FaultEvent("oneway", 5, 0)
    assert not idle(tmp_path, cut, [], (0, (0, 1)))
    assert idle(tmp_path, cut, [before], (0, (0, 1))), "ended, and nobody needed it"
    assert not idle(tmp_path, cut, [before], (0, (0, 1)), (7, (0, 1))), "connected anew since"
    assert not idle(tmp_path, cut, [late], (0, (0, 1))), "of others"
    assert idle(tmp_path, joins, [], (0, (0, 1)), (9, (0, 1, 2))), "it comes with this change"
    assert not idle(tmp_path, joins, [], (0, (0, 1, 2)), (9, (0, 1, 2)))


def test_a_flip_that_finds_nothing_is_no_idle_victim(tmp_path: Path) -> None:
    assert not idle(tmp_path, FaultEvent("flip", 3, 0), [], (0, (0, 1)))


def test_no_bit_flips_where_there_is_no_state(tmp_path: Path) -> None:
    assert struck(FaultEvent("flip", 3, 0), tmp_path, layout=None, state=None) == []


def test_what_strikes_leaves_a_note(tmp_path: Path) -> None:
    assert struck(FaultEvent("slow", 3, 0, factor=2), tmp_path) == ["slow@3:0:x2"]
