"""Stopping, from the user's end: Ctrl-C, SIGTERM, impatience, and an agent that is killed; never an orphan."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import Command, command, eventually, running_now, steps_done, tiny

LONG = "train.steps=4000"


def training(running: Command, folder: Path) -> None:
    """Wait until some steps are committed."""
    assert eventually(lambda: steps_done(folder) >= 2 or running.process.poll() is not None, 100)
    assert running.process.poll() is None, running.finish()
    assert len(running.ranks()) == 4


def one(running: Command, number: int) -> None:
    running.process.send_signal(number)


def group(running: Command, number: int) -> None:
    """As a terminal, or a batch system, sends it: to every process at once."""
    os.killpg(running.process.pid, number)


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, group), (signal.SIGTERM, one)], ids=["ctrl-c", "sigterm"])
def test_a_signal_stops_with_a_checkpoint(number: int, send: Callable[[Command, int], None], tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, LONG)) as running:
        training(running, tmp_path)
        send(running, number)
        code, out, err = running.finish()
        assert (code, err) == (0, "")
        assert running.gone_within(5), running.living()
    done = steps_done(tmp_path)
    folder = tmp_path / "checkpoints" / f"step-{done:08}"
    assert folder.is_dir()
    said = out.splitlines()[-1]
    assert said == (
        f"stopped after step {done} of 4000; checkpoint in {folder}; "
        f"go on with: trainsys train {tmp_path / 'config.yaml'}"
    )
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(("delay_s", "number"), [(0.2, signal.SIGTERM), (0.4, signal.SIGINT), (0.8, signal.SIGTERM)])
def test_a_signal_to_all_while_ranks_start(delay_s: float, number: int, tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, LONG)) as running:
        assert eventually(lambda: (tmp_path / "history.jsonl").exists(), 60)
        time.sleep(delay_s)
        group(running, number)
        code, out, err = running.finish()
        assert (code, err) == (0, "")
        assert running.gone_within(5), running.living()
    assert out.splitlines()[-1].startswith(f"stopped after step {steps_done(tmp_path)} of 4000")


@pytest.mark.alone
def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, LONG, "batch.global_size=6000")) as running:  # a step outlasts the test
        assert eventually(lambda: '"changed"' in _text(tmp_path / "history.jsonl"), 60)
        group(running, signal.SIGINT)
        assert not eventually(lambda: running.process.poll() is not None, 0.3)
        ranks = running.ranks()
        group(running, signal.SIGINT)
        assert eventually(lambda: not any(map(running_now, ranks)), 5)
        assert running.gone_within(20), running.living()
        code, _, err = running.finish()
    assert (code, err) == (130, "trainsys: interrupted\n")
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_before_the_first_step(tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, LONG)) as running:
        assert eventually(lambda: len(running.ranks()) >= 1, 60)
        one(running, signal.SIGTERM)
        code, out, err = running.finish()
        assert (code, err) == (0, "")
        assert running.gone_within(5), running.living()
    assert out.splitlines()[-1].startswith(f"stopped after step {steps_done(tmp_path)} of 4000")


@pytest.mark.alone
@pytest.mark.parametrize("early", [False, True], ids=["training", "starting"])
def test_ranks_do_not_outlive_a_killed_agent(early: bool, tmp_path: Path) -> None:
    with command("train", *tiny(tmp_path, LONG)) as running:
        if early:
            assert eventually(lambda: len(running.ranks()) == 4, 60)
        else:
            training(running, tmp_path)
        ranks = running.ranks()
        assert len(ranks) == 4
        one(running, signal.SIGKILL)
        assert eventually(lambda: not any(map(running_now, ranks)), 2)
        assert running.gone_within(20), running.living()  # Python's helpers, which take their time


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
