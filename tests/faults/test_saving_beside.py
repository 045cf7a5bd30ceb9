"""Checkpoints written beside the steps: whole, of the right step, and given up without a trace when a rank is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.test_kills import train
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.drill_result import compare
from trainsys.elastic.recorder import Recorder


def test_a_loss_while_a_checkpoint_is_written(tmp_path: Path, undisturbed: Callable[[str], Recorder]) -> None:
    options = ("checkpoint.beside=true", "checkpoint.every=2", "checkpoint.keep=20")
    ours = train(tmp_path, "dp2·pp2 zero1", "kill@6:3:forward", *options)
    cost = compare(ours.config, ours, undisturbed("dp2·pp2 zero1"))
    assert (cost["steps_lost"], cost["samples_lost"], cost["bit_equal_loss"]) == (0, 0, True)
    assert False not in verdicts(check_run(tmp_path)).values()
    saved = [step for step, _, error in ours.saves if not error]
    assert saved == sorted(saved)
    assert saved[-1] == 12
    assert len(saved) >= 3
    folders = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert folders >= {f"step-{step:08}" for step in saved}  # of one more the word may have been lost with the rank
    assert all((tmp_path / "checkpoints" / name / "trainsys.json").exists() for name in folders)


def test_a_change_calls_off_what_is_being_written(tmp_path: Path) -> None:
    """Nobody waits for a rank that has left while its part was outstanding."""
    options = ("checkpoint.beside=true", "checkpoint.every=4", "elastic.comm_timeout_s=30")
    ours = train(tmp_path, "dp2·pp2 zero1", "drain@3:3:forward,join@4,drain@7:1:forward", *options)
    assert sum(change.redo for change in ours.changes) == 0
    assert max(ours.step_s) < 15
