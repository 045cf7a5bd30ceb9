"""What strikes inside a rank, without a run around it: a fault that finds nothing to strike says why."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_only_a_pair_that_is_apart_is_an_idle_victim(tmp_path: Path) -> None:
    """A flip that finds nothing is a fault of the storm or of the run: nobody should have dealt it."""
    cut, flip, late = FaultEvent("cut", 3, 0, peer=1), FaultEvent("flip", 3, 0), FaultEvent("oneway", 5, 0, peer=2)
    assert struck(cut, tmp_path, comm=SimpleNamespace(groups=())) == []
    assert struck(flip, tmp_path, layout=None, state=None) == []
    assert nothing_there(tmp_path / "faults").keys() == {str(cut), str(flip)}
    stands: Any = SimpleNamespace(step=0, after=SimpleNamespace(ranks=(0, 1, 2)))
    run: Any = SimpleNamespace(run_dir=tmp_path, changes=[stands])
    events = [cut, flip, late]
    assert idle_victims(events, run, [str(event) for event in events]) == [str(cut)]


def test_no_bit_flips_where_there_is_no_state(tmp_path: Path) -> None:
    assert struck(FaultEvent("flip", 3, 0), tmp_path, layout=None, state=None) == []


def test_what_strikes_leaves_a_note(tmp_path: Path) -> None:
    assert struck(FaultEvent("slow", 3, 0, factor=2), tmp_path) == ["slow@3:0:x2"]
