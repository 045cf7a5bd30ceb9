"""launch/train.py under a real torchrun trains the same numbers as `trainsys train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainsys.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs/run/tiny.yaml")
OVERRIDES = [TINY, "train.steps=4", "data.max_bytes=200000", "elastic.heartbeat_limit_s=60"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def under_torchrun(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, "4", str(ROOT / "launch" / "train.py"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)


def exact(folder: Path) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss_hex"], line["grad_norm_hex"]) for line in lines]


@pytest.mark.timeout(240)
def test_losses_under_torchrun_are_those_of_train(tmp_path: Path) -> None:
    under, alone = tmp_path / "torchrun", tmp_path / "train"
    done = under_torchrun([*OVERRIDES, f"run_dir={under}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["train", *OVERRIDES, f"run_dir={alone}"]) == 0
    assert [step for step, _, _ in exact(under)] == [0, 1, 2, 3]
    assert exact(under) == exact(alone)
    assert (under / "checkpoints" / "step-00000004" / "trainsys.json").exists()
    events = [json.loads(line)["event"] for line in (under / "history.jsonl").read_text().splitlines()]
    assert events.count("joined") == 4
    assert events[-1] == "end"
    *_, trained, compared = done.stdout.splitlines()
    assert trained == f"trained 4 steps; checkpoint in {under}/checkpoints/step-00000004; record in {under}"
    assert compared.startswith("Forward and backward of step 3: predicted ")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run_dir=/proc/x", "run_dir=/proc/x: /proc cannot be written"),
        ("train.init_from=hf:/no/such/folder", "train.init_from: /no/such/folder is no Hugging Face checkpoint"),
    ],
)
def test_bad_input_is_one_line_of_rank_0(override: str, says: str, tmp_path: Path) -> None:
    done = under_torchrun([*OVERRIDES, f"run_dir={tmp_path}/run", override])
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("trainsys: ")]
    assert len(ours) == 1 and says in ours[0], done.stderr
    assert "Error: " not in "".join(line for line in done.stderr.splitlines() if "ChildFailedError" not in line)
    assert not (tmp_path / "run").exists()
