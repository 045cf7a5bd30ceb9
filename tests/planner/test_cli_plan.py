"""The command: screen, JSON, the written config, and bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainsys.cli.main import main
from trainsys.config import load
from trainsys.planner.check import check_parallel

CONFIGS = ["configs/model/llama-tiny.yaml", "configs/cluster/local-4.yaml"]


def test_it_writes_the_winner_as_a_config_that_trains(tmp_path, capsys):
    out = tmp_path / "plan.yaml"
    assert main(["plan", *CONFIGS, "model.ffn_dim=350", "train.steps=7", "--out", str(out)]) == 0
    screen = capsys.readouterr().out
    plan = load([str(out)])
    assert plan.train.steps == 7
    check_parallel(plan, 4)
    assert f"trainsys train {out}" in screen
    assert "model.ffn_dim=350 is not divisible by parallel.tp=4" in screen


def test_json_is_the_only_thing_on_stdout(tmp_path, capsys):
    assert main(["plan", *CONFIGS, "model.ffn_dim=350", "--json", "--out", str(tmp_path / "p.yaml")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report)[:5] == ["cluster", "model", "plans", "rejected", "search_s"]
    assert report["legal"] == report["pruned"] + report["simulated"]  # all fit
    assert {"layout", "step_s", "tokens_per_s", "mfu", "peak_gib", "limit_gib", "bubble"} <= set(report["plans"][0])
    assert load([str(tmp_path / "p.yaml")]).parallel.dp == report["plans"][0]["parallel"]["dp"]
    assert sum(report["rejected"].values()) == 4 * 5  # with each of five microbatch sizes


def test_an_override_fixes_its_key_and_a_file_does_not(tmp_path, capsys):
    """What the planner wrote can be planned again; only the command line holds it to a value."""
    out = str(tmp_path / "p.yaml")
    assert main(["plan", *CONFIGS, "parallel.zero=3", "parallel.reduction=canonical", "--json", "--out", out]) == 0
    fixed = json.loads(capsys.readouterr().out)["plans"]
    assert {plan["parallel"]["zero"] for plan in fixed} == {3}
    assert main(["plan", out, "--json", "--top", "10000", "--out", out]) == 0
    assert {plan["parallel"]["zero"] for plan in json.loads(capsys.readouterr().out)["plans"]} == {0, 1, 2, 3}
    assert main(["plan", *CONFIGS, "parallel.order=tp,pp", "--out", out]) == 2
    assert "parallel.order=tp,pp must name each of" in capsys.readouterr().err


def test_the_microbatch_is_searched_where_nobody_names_it(tmp_path, capsys):
    """configs/run/tiny.yaml names it; a model and a cluster do not. What is searched is written."""

    def sizes(*args: str) -> set[int]:
        assert main(["plan", *args, "--json", "--out", str(tmp_path / "p.yaml")]) == 0
        plans = json.loads(capsys.readouterr().out)["plans"]
        assert load([str(tmp_path / "p.yaml")]).batch.microbatch_size == plans[0]["microbatch_size"]
        return {plan["microbatch_size"] for plan in plans}

    assert len(sizes(*CONFIGS)) > 1
    assert sizes(*CONFIGS, "batch.microbatch_size=4") == {4}
    assert sizes("configs/run/tiny.yaml") == {1}
    assert len(sizes("configs/run/tiny.yaml", "--any-microbatch")) > 1


def test_a_schedule_is_harmless_without_a_pipeline(tmp_path, capsys):
    fixed = ["parallel.schedule=gpipe", "parallel.pp=1"]
    assert main(["plan", *CONFIGS, *fixed, "--json", "--out", str(tmp_path / "p.yaml")]) == 0
    assert {plan["parallel"]["pp"] for plan in json.loads(capsys.readouterr().out)["plans"]} == {1}


def test_top_limits_the_table(tmp_path, capsys):
    assert main(["plan", "--top", "2", *CONFIGS, "--out", str(tmp_path / "p.yaml")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\s+\d+ +dp\d", line)]
    assert len(rows) == 2


@pytest.mark.parametrize("columns", [80, 140])
def test_the_screen_keeps_within_its_columns_and_has_no_colour_in_a_pipe(tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    configs = [str(Path(config).resolve()) for config in CONFIGS]
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *configs]) == 0
    screen = capsys.readouterr().out
    assert "\x1b" not in screen
    assert max(map(len, screen.splitlines())) <= columns


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "CONFIG"),
        (["configs/nowhere.yaml"], "configs/nowhere.yaml does not exist"),
        ([*CONFIGS, "model.heads=3"], "heads"),
        ([*CONFIGS, "batch.seq_len=4096"], "longer than model.max_seq_len=128"),
        ([*CONFIGS, "batch.microbatch_size=3"], "not divisible by batch.microbatch_size=3"),
        ([*CONFIGS, "cluster.device.memory_gib=0.001"], "no layout fits on 4 ranks"),
        ([*CONFIGS, "--top", "0"], "--top 0 must be at least 1"),
        ([*CONFIGS, "cluster.nodes=10000000000000"], "20000000000000 ranks are more than the 4194304"),
        ([*CONFIGS, "--fast"], "--fast"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, args, message):
    out = tmp_path / "plan.yaml"
    assert main(["plan", *args, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not out.exists()


def test_an_unwritable_plan_is_one_line(capsys):
    assert main(["plan", *CONFIGS, "--out", "/dev/null/plan.yaml"]) == 2
    assert "--out /dev/null/plan.yaml cannot be written" in capsys.readouterr().err


def test_a_plan_needs_no_torch(tmp_path):
    code = (
        "import sys; from trainsys.cli.plan import run; code = run(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, *CONFIGS, "--out", str(tmp_path / "p.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
