"""One real drill on four local ranks: a kill in the middle of backward, and a fresh rank afterwards."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainsys.cli.main import main
from trainsys.config import load
from trainsys.elastic.check.registry import check_run
from trainsys.elastic.drill import drill
from trainsys.elastic.drill_result import unplanned
from trainsys.elastic.faults import parse_faults

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs/run/tiny.yaml")
KEYS = {
    "steps", "steps_lost", "samples_lost", "samples_repeated", "bit_equal_loss", "max_abs_loss_diff", "faults",
    "predicted_step_s", "measured_step_s",
}  # fmt: skip


@pytest.mark.timeout(120)
def test_a_killed_rank_costs_nothing_but_time(tmp_path: Path) -> None:
    config = load([TINY, "train.steps=16", "faults.schedule=kill@4:2:backward,kill@8:manager:tell",
                   f"run_dir={tmp_path}"])  # fmt: skip
    result = drill(config)
    assert result.keys() >= KEYS
    assert (result["steps"], result["steps_lost"], result["samples_lost"], result["samples_repeated"]) == (16, 0, 0, 0)
    assert result["bit_equal_loss"]
    assert result["bit_equal_grad_norm"]
    assert result["unplanned"] == []
    assert result["max_abs_loss_diff"] == 0.0
    (fault,) = result["faults"]
    assert (fault["kind"], fault["rank"], fault["phase"], fault["step"]) == ("kill", 2, "backward", 4)
    assert 0 < fault["detect_s"] < fault["recover_s"] < 30
    assert fault["bytes_moved"] > 0
    (takeover,) = result["takeovers"]
    assert (takeover["kind"], takeover["phase"], takeover["step"]) == ("kill", "tell", 8)
    told, worst = (tmp_path / "report.md").read_text(), max(fault["recover_s"], takeover["recover_s"])
    assert "| kill | manager | tell | 8 |" in told
    assert f"From a fault to the step in flight being done again: {worst:.2f} s at most." in told
    assert result["not_struck"] == []
    assert result["invariants"] == dict.fromkeys((f"I{n}" for n in range(8)), True)
    for name in ("report.md", "report.json", "loss.png", "timeline.png", "trace.json", "metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 100, name
    assert json.loads((tmp_path / "report.json").read_text()) == result
    losses = [[json.loads(line)["loss_hex"] for line in (folder / "metrics.jsonl").open()]
              for folder in (tmp_path, tmp_path / "undisturbed")]  # fmt: skip
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 16  # it did train


@pytest.mark.timeout(120)
def test_a_rank_with_experts_of_its_own_is_lost_like_any_other(tmp_path: Path) -> None:
    """Two classes of experts on four ranks; what is left holds all of them."""
    model = ["model.family=mixtral", "model.num_experts=4", "model.ffn_dim=64", "model.router_aux_coef=0.05"]
    layout = ["parallel.dp=2", "parallel.pp=2", "parallel.ep=2", "parallel.zero=1"]
    faults = "kill@3:1:backward"
    result = drill(load([TINY, *model, *layout, "train.steps=6", f"faults.schedule={faults}", f"run_dir={tmp_path}"]))
    assert (result["steps_lost"], result["samples_lost"], result["samples_repeated"]) == (0, 0, 0)
    assert result["bit_equal_loss"]
    assert result["bit_equal_grad_norm"]
    assert "ep2" in (tmp_path / "report.md").read_text()


@pytest.mark.timeout(120)
def test_a_second_death_during_the_transition_is_survived(tmp_path: Path) -> None:
    faults = "kill@3:2:reduce,kill@3:3:transfer"
    result = drill(load([TINY, "train.steps=6", f"faults.schedule={faults}", f"run_dir={tmp_path}"]))
    assert [fault["rank"] for fault in result["faults"]] == [2, 3]
    assert (result["steps_lost"], result["samples_lost"], result["samples_repeated"]) == (0, 0, 0)
    assert result["bit_equal_loss"]
    assert result["not_struck"] == []


@pytest.mark.timeout(120)
def test_a_fault_that_never_struck_fails_the_drill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # step 3 is the last: whoever comes during it finds no boundary left at which to work
    argv = ["drill", TINY, "train.steps=4", "faults.schedule=kill@3:0:transfer,join@3", f"run_dir={tmp_path}", "--json"]
    assert main(argv) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["not_struck"] == ["kill@3:0:transfer", "join@3"]
    assert said.err.splitlines()[-1] == "trainsys: never struck: kill@3:0:transfer, join@3"


@pytest.mark.timeout(120)
def test_a_rank_that_nobody_killed_fails_the_drill() -> None:
    """Not to be taken for a fault: the run itself breaks, and breaks the undisturbed one too."""
    planned = parse_faults("kill@4:2:backward,join@6", 4, 16)
    lost = [SimpleNamespace(kind="kill", rank=2, phase="backward", step=4)]
    broken = SimpleNamespace(kind="exit", rank=1, phase="", step=0)

    def run(faults: list[Any]) -> Any:
        return SimpleNamespace(faults=faults, takeovers=[])

    assert unplanned(planned, run(lost), run([])) == []
    both = unplanned(planned, run([broken, *lost]), run([broken]))
    assert both == ["rank 1 at step 0", "rank 1 at step 0 of the undisturbed run"]


def test_a_drill_does_not_overwrite_a_training_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(ValueError, match="holds a training run"):
        drill(load([TINY, f"run_dir={tmp_path}"]))
    assert (tmp_path / "metrics.jsonl").exists()


@pytest.mark.timeout(120)
def test_a_folder_that_was_trained_in_is_no_drill_any_more(tmp_path: Path) -> None:
    short = [TINY, "train.steps=3", "faults.schedule=", f"run_dir={tmp_path}"]
    assert drill(load(short))["bit_equal_loss"]
    assert main(["train", *short, "train.steps=4"]) == 0
    with pytest.raises(ValueError, match="holds a training run"):
        drill(load(short))
    assert (tmp_path / "checkpoints" / "step-00000004").is_dir()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("faults.schedule=kill@3:0:transfer", "nothing changes it at step 3 or before"),
        ("faults.schedule=kill@0:0:plan,kill@1:1:forward", "nothing changes it at step 0 or before"),
        ("parallel.reduction=fast", "set parallel.reduction=canonical"),
    ],
)
def test_a_drill_that_cannot_pass_is_refused(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        drill(load([TINY, override, f"run_dir={tmp_path}/run"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.timeout(120)
def test_a_fixed_port_serves_both_trainings(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = drill(load([TINY, "train.steps=3", "faults.schedule=", f"elastic.port={port}", f"run_dir={tmp_path}"]))
    assert done["bit_equal_loss"]


@pytest.mark.timeout(120)
def test_sigterm_stops_cleanly_and_the_next_start_resumes(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "trainsys", "train", TINY, "train.steps=400", f"run_dir={tmp_path}"]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    metrics, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    done = metrics.read_text().count("\n")
    assert f"stopped after step {done} of 400" in out
    argv[5] = f"train.steps={done + 2}"
    again = subprocess.run([*argv, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0
    outcome = json.loads(again.stdout)
    assert (outcome["start_step"], outcome["steps"]) == (done, done + 2)
    assert [json.loads(line)["step"] for line in metrics.open()] == list(range(done + 2))
    found = check_run(tmp_path)  # two lives, one after the other
    assert found["I2"].checked["steps"] == done + 2
    assert {name for name, one in found.items() if one.holds is not True} == {"I3", "I6"}
