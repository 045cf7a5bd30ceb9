"""launch/train.py under a real torchrun trains the same numbers as `trainsys train`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["configs/run/tiny.yaml", "train.steps=4", "data.max_bytes=200000"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(command: list[str]) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def exact(folder: Path) -> list[tuple[int, str, str]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss_hex"], line["grad_norm_hex"]) for line in lines]


@pytest.mark.timeout(120)
def test_losses_under_torchrun_are_those_of_train(tmp_path: Path) -> None:
    under, alone = tmp_path / "torchrun", tmp_path / "train"
    done = start([*TORCHRUN, "4", "launch/train.py", *OVERRIDES, f"run_dir={under}"])
    assert done.returncode == 0, done.stdout + done.stderr
    done = start([sys.executable, "launch/train.py", *OVERRIDES, f"run_dir={alone}"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for step, _, _ in exact(under)] == [0, 1, 2, 3]
    assert exact(under) == exact(alone)
    assert (under / "checkpoints" / "step-00000004" / "trainsys.json").exists()
    events = [json.loads(line)["event"] for line in (under / "history.jsonl").read_text().splitlines()]
    assert events.count("joined") == 4
    assert events[-1] == "end"
