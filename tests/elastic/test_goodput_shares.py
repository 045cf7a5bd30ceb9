"""What the time of a run is counted as, from lines written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainsys.config import CheckpointConfig, RunConfig
from trainsys.elastic.check.record import Attempt, Line
from trainsys.elastic.goodput import segments
from trainsys.elastic.recorder import Recorder


def attempt_of(*events: tuple[float, str]) -> Attempt:
    """A manager's lines; wall clock and monotonic clock are the same."""
    lines: list[dict[str, Any]] = [
        {"event": name, "t_s": t, "unix_s": t, "reason": "", "cause": "hang", "rank": 3, "silent_s": 2.0}
        for t, name in events
    ]
    return Attempt([Line("manager", i, line) for i, line in enumerate(lines)])


@pytest.mark.parametrize(("beside", "seconds"), [(False, 3.0), (True, 0.0)])
def test_a_checkpoint_beside_the_steps_takes_no_time_from_them(beside: bool, seconds: float, tmp_path: Path) -> None:
    with Recorder(RunConfig(checkpoint=CheckpointConfig(beside=beside), run_dir=str(tmp_path)), tmp_path) as recorder:
        recorder.saved(1, "step-1", "")
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    (saved,) = [line for line in lines if line["event"] == "saved"]
    (tmp_path / "history.jsonl").write_text(json.dumps({**saved, "unix_s": 5.0}))
    attempt = attempt_of((0, "started"), (1, "switched"), (2, "committed"), (9, "committed"), (10, "ended"))
    found = segments(attempt, tmp_path)
    spent = {name: sum(s.end - s.start for s in found if s.activity == name) for name in ("useful", "checkpoint")}
    assert spent == {"useful": 8.0 - seconds, "checkpoint": 1.0 + seconds}  # the last one is written in a pause


@pytest.mark.parametrize("who", ["rank", "manager"])
def test_a_silence_that_nobody_injected_is_detection(who: str, tmp_path: Path) -> None:
    lost = [(6, "lost")] if who == "rank" else []
    attempt = attempt_of((0, "started"), (1, "switched"), (3, "committed"), *lost, (7, "called_off"), (8, "switched"))
    if who == "manager":
        (tmp_path / "history.jsonl").write_text(json.dumps({"event": "manager_lost", "unix_s": 6.0, "detect_s": 2.0}))
    found = segments(attempt, tmp_path)
    spent = {name: sum(s.end - s.start for s in found if s.activity == name) for name in ("redone", "detection")}
    assert spent == {"redone": 2.0, "detection": 2.0}
