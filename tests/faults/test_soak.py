"""A soak without its runs: what a storm may come to, and what is cleared; and zombies that never woke up."""

from __future__ import annotations

import json
import multiprocessing as mp
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainsys.config import FaultsConfig, RunConfig, TrainConfig
from trainsys.elastic import soak as module
from trainsys.elastic.claim import mark_drill
from trainsys.elastic.drill import Drill, _goodput
from trainsys.elastic.drill_folder import clear_outputs
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.faults.notes import write_note
from trainsys.elastic.faults.zombies import BY_ITSELF, Zombies, read_zombies
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.soak import soak, why_failed

CLEAN: dict[str, Any] = {
    "steps": 4, "strikes": [], "steps_lost": 0, "samples_lost": 0, "samples_repeated": 0, "faults": [],
    "goodput": None, "invariants": {"I1": True}, "not_struck": [], "nothing_there": {}, "unplanned": [], "zombies": [],
    "bit_equal_loss": True, "bit_equal_grad_norm": True,
}  # fmt: skip


def soaked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storms: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """The summary of a soak whose storms are `storms`, by seed; stopped by KeyboardInterrupt."""

    def run_drill(config: RunConfig, console: object, reference: object) -> Any:
        Path(config.run_dir).mkdir(exist_ok=True)
        mark_drill(Path(config.run_dir))
        result: Any = storms(config.faults.seed)
        return Drill(config, None, None, result)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "run_drill", run_drill)
    monkeypatch.setattr(module, "_undisturbed", lambda *_: SimpleNamespace(next_step=4))
    return soak(RunConfig(faults=FaultsConfig(kills=1), train=TrainConfig(steps=4), run_dir=str(tmp_path)), 1.0)


def test_whatever_ends_a_storm_is_its_failure_and_the_soak_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def storm(seed: int) -> dict[str, Any]:
        errors: list[BaseException] = [
            ElasticError("no living rank holds it"), RuntimeError("the manager failed:\nTraceback\nKeyError: 3"),
            ValueError("torn"),
        ]  # fmt: skip
        if seed < len(errors):
            raise errors[seed]
        if seed > len(errors):
            raise KeyboardInterrupt
        return CLEAN

    summary = soaked(tmp_path, monkeypatch, storm)
    assert (summary["runs"], summary["failed"]) == (4, 3)
    assert [f["why"] for f in summary["failures"]] == [
        "no living rank holds it", "RuntimeError: the manager failed: KeyError: 3", "ValueError: torn",
    ]  # fmt: skip
    assert json.loads((tmp_path / "soak.json").read_text())["failures"] == summary["failures"]
    assert sorted(path.name for path in tmp_path.glob("seed-*")) == ["seed-0", "seed-1", "seed-2", "seed-4"]
    assert "KeyError: 3" in (tmp_path / "seed-1" / "traceback.txt").read_text()


def test_input_that_cannot_be_ends_a_soak_at_its_first_storm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> dict[str, Any]:
        raise ValueError("set it lower")

    with pytest.raises(ValueError, match="set it lower"):
        soaked(tmp_path, monkeypatch, refuse)

    def torn(seed: int) -> dict[str, Any]:
        if seed:
            raise KeyboardInterrupt
        result: dict[str, Any] = json.loads("{")
        return result

    assert soaked(tmp_path, monkeypatch, torn)["failed"] == 1  # a note that cannot be read is no input


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"zombies": [{"rank": 2, "awake_s": 2.0, "ended": "killed"}]}, "zombie 2: killed"),
        ({"bit_equal_loss": False}, "the loss has other bits"),
        ({"bit_equal_grad_norm": False}, "the gradient norm has other bits"),
        ({"not_struck": ["join@3"], "samples_lost": 2}, "join@3 never struck; 2 samples_lost"),
        ({"not_struck": ["flip@3:0"], "nothing_there": {"flip@3:0": "no state"}}, "flip@3:0 (no state) never struck"),
        ({"invariants": {"I1": False, "I3": None}}, "I1 violated"),
        ({"unplanned": ["rank 1 at step 3"]}, "rank 1 at step 3 lost though nobody killed it"),
        ({"bit_equal_loss": None, "bit_equal_grad_norm": None}, ""),  # emulated
    ],
)
def test_why_a_storm_failed(changed: dict[str, Any], why: str) -> None:
    assert why_failed({**CLEAN, **changed}) == why


def test_a_second_soak_begins_with_an_empty_folder(tmp_path: Path) -> None:
    mark_drill(tmp_path)
    (tmp_path / "soak.json").write_text("{}")
    for name in ("seed-3", "seed-data"):
        (tmp_path / name).mkdir()
    mark_drill(tmp_path / "seed-3")
    clear_outputs(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["seed-data"]


@pytest.mark.parametrize(("name", "said"), [("report.md", "no drill made"), ("metrics.jsonl", "a training run")])
def test_what_is_no_drill_s_is_never_removed(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=said):
        clear_outputs(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_zombie_that_never_woke_up_is_told(tmp_path: Path) -> None:
    """And of one that did it is known when its cluster has been closed."""
    events = [FaultEvent("wake", 3, rank) for rank in (1, 2)]
    for event in events:
        write_note(tmp_path, event, event.rank, 3, fatal=True)
    zombies, process = Zombies(events, tmp_path), mp.get_context("fork").Process(target=time.sleep, args=(0.0,))
    process.start()
    assert zombies.spare(1, process)
    zombies.join(10.0)
    woke, slept = read_zombies(tmp_path)
    assert (woke["rank"], woke["ended"]) == (1, BY_ITSELF)
    assert (slept["rank"], slept["ended"]) == (2, "never woke up")
    assert not Drill(RunConfig(), None, None, {**CLEAN, "zombies": [slept]}).passed  # type: ignore[arg-type]
    assert Drill(RunConfig(), None, None, {**CLEAN, "zombies": [woke]}).passed  # type: ignore[arg-type]


def test_a_drill_whose_history_could_not_be_written_has_no_goodput(tmp_path: Path) -> None:
    assert _goodput(RunConfig(run_dir=str(tmp_path))) is None
