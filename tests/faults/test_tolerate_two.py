"""elastic.tolerate=2: any two ranks die at the same instant, and all three holders of a piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_kills import LAYOUTS, check, train
from tests.tiny import tiny
from trainsys.config import load
from trainsys.elastic.check.registry import check_run
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder
from trainsys.space.build import build_layout

TWO = "elastic.tolerate=2"


def test_an_owner_and_its_first_peer_at_once(tmp_path: Path, undisturbed: Callable[[str], Recorder]) -> None:
    """None of its pieces is moved in between. With one peer it would be the end: rank 0's first peer is rank 2."""
    faults, overrides = "kill@4:0:snapshot,kill@4:2:plan", ("parallel.zero=0", TWO)
    recorder = train(tmp_path / "run", "dp2·pp2 zero1", faults, *overrides)
    config = load(tiny(tmp_path / "run", *LAYOUTS["dp2·pp2 zero1"].split(), *overrides))
    check(recorder, undisturbed("dp2·pp2 zero1"), config)
    (first, *_, last) = recorder.changes
    assert first.after is not None and last.after is not None
    assert (first.after.tolerates, last.after.tolerates) == (2, 1)
    assert set(last.after.ranks) == {1, 3}


def test_all_holders_at_once(tmp_path: Path) -> None:
    config = load(tiny(tmp_path, *LAYOUTS["dp4 zero2"].split(), TWO))
    layout = build_layout(config.parallel, (4,), range(4), config.elastic.chunk, lambda r: r // 2, tolerate=2)
    faults = ",".join(["kill@4:0:reduce", *(f"kill@4:{peer}:plan" for peer in layout.peers_of[0])])
    with pytest.raises(ElasticError, match=r"state is lost with ranks .*no living rank holds it"):
        train(tmp_path, "dp4 zero2", faults, TWO)
    found = check_run(tmp_path)
    assert {name for name, one in found.items() if one.holds is not True} == {"I3"}
    assert found["I7"].checked["ends for lost state"] == 1
