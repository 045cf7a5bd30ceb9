"""launch/train.py under a real torchrun trains the same numbers as `trainsys train`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.tiny import eventually
from trainsys.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs/run/tiny.yaml")
STEPS = 16
OVERRIDES = [TINY, f"train.steps={STEPS}", "data.max_bytes=200000", "elastic.heartbeat_limit_s=60"]
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
    """And a rank that dies is survived in place: torchrun, which was told of no restart, does not notice."""
    under, alone = tmp_path / "torchrun", tmp_path / "train"
    killer = threading.Thread(target=kill_rank_2, args=(under,))
    killer.start()
    done = under_torchrun([*OVERRIDES, f"run_dir={under}"])
    killer.join()
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["train", *OVERRIDES, f"run_dir={alone}"]) == 0
    assert [step for step, _, _ in exact(under)] == list(range(STEPS))
    assert exact(under) == exact(alone)
    assert (under / "checkpoints" / f"step-{STEPS:08}" / "trainsys.json").exists()
    told = [json.loads(line) for line in (under / "history.jsonl").read_text().splitlines()]
    events = [line["event"] for line in told]
    assert events.count("joined") == 4
    assert [line["rank"] for line in told if line["event"] == "lost"] == [2]
    assert events[-1] == "end"
    *_, trained, compared = done.stdout.splitlines()
    assert trained == f"trained {STEPS} steps; checkpoint in {under}/checkpoints/step-{STEPS:08}; record in {under}"
    assert compared.startswith(f"Forward and backward of step {STEPS - 1}: predicted ")


def kill_rank_2(folder: Path) -> None:
    """Once a few steps are done."""
    metrics, history = folder / "metrics.jsonl", folder / "history"
    assert eventually(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 3, 120)
    (path,) = history.glob("rank-2-*.jsonl")
    os.kill(json.loads(path.read_text().splitlines()[0])["pid"], signal.SIGKILL)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("override", "says"),
    [
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
