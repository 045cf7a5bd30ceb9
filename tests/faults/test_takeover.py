"""The manager is killed or frozen in the middle of a decision: another takes over, and nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.test_kills import LAYOUTS, Patient, check
from trainsys.config import load
from trainsys.elastic.agent import run_local
from trainsys.elastic.faults import MANAGER, FaultEvent
from trainsys.elastic.recorder import Recorder

from tests.tiny import tiny  # isort: skip

LAYOUT = "dp2·pp2 zero1"


def train(folder: Path, faults: list[FaultEvent], *overrides: str) -> Recorder:
    config = load(tiny(folder, *LAYOUTS[LAYOUT].split(), *overrides))
    with Patient(config, config.run_dir) as recorder:
        recorder.awaited = sum(e.kind == "join" for e in faults)
        run_local(config, recorder, faults)
    return recorder


@pytest.mark.parametrize(
    ("kind", "phases"),
    [("kill", ("collect", "tell")), ("kill", ("open", "switch")), ("stop", ("tell",)), ("kill", ("call",))],
)
def test_nobody_misses_the_manager(
    kind: str, phases: tuple[str, ...], tmp_path: Path, undisturbed: Callable[[str], Recorder]
) -> None:
    """Around steps on their own, or around the change that answers a loss."""
    changing = phases[0] in ("open", "switch", "call")
    faults = [FaultEvent(kind, 3 + (not changing) * i, MANAGER, phase) for i, phase in enumerate(phases)]
    if changing:
        faults.append(FaultEvent("kill", 3, 1, "backward"))
    ours = train(tmp_path, faults)
    check(ours, undisturbed(LAYOUT), ours.config)
    assert [(t.kind, t.phase) for t in ours.takeovers] == [(kind, phase) for phase in phases]
    assert [f.rank for f in ours.faults] == [e.rank for e in faults if e.rank >= 0]
