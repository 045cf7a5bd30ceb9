"""One run per folder at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny import command, eventually, steps_done, tiny
from trainsys.cli.main import main
from trainsys.config import load
from trainsys.elastic.claim import claimed


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command("train", *tiny(tmp_path, "train.steps=4000")) as running:
        assert eventually(lambda: steps_done(tmp_path) >= 1, 60)
        assert main(["train", *tiny(tmp_path)]) == 2
        assert f"run_dir={tmp_path} is in use by process {running.process.pid}" in capsys.readouterr().err
        assert main(["drill", *tiny(tmp_path)]) == 2
        assert f"run_dir={tmp_path} holds a training run, which a drill would replace" in capsys.readouterr().err
    assert steps_done(tmp_path) >= 1


def test_a_claim_ends_with_its_block(tmp_path: Path) -> None:
    config = load([f"run_dir={tmp_path}/run"])
    for _ in range(2):
        with claimed(config), pytest.raises(ValueError, match=f"in use by process {os.getpid()}"), claimed(config):
            pass


def test_two_runs_do_not_share_a_folder_of_checkpoints(tmp_path: Path) -> None:
    one, two = (load([f"run_dir={tmp_path}/{name}", f"checkpoint.dir={tmp_path}/saved"]) for name in ("one", "two"))
    with claimed(one), pytest.raises(ValueError, match=r"checkpoint\.dir=.* set another checkpoint\.dir"), claimed(two):
        pass
