"""The command's answers: why=, --explain, --picture and --export, on screen and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainsys.cli.main import main
from trainsys.config import load
from trainsys.planner.parts import PARTS

CONFIGS = ["configs/model/llama-tiny.yaml", "configs/cluster/local-4.yaml", "cluster.device.tflops=1"]
KNOWN = [
    "configs/model/llama-8b.yaml", "configs/cluster/dgx-a100-2.yaml", "cluster.nodes=1", "train.dtype=bfloat16",
    "batch.global_size=16", "batch.microbatch_size=1", "batch.seq_len=4096", "model.ffn_dim=14340",
    "parallel.zero=1", "parallel.reduction=fast",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is run; its configs are named from there."""
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"configs"}


def test_a_question_is_answered_and_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *CONFIGS, "why=tp3"]) == 0
    said = capsys.readouterr().out
    assert "illegal" in said
    assert "parallel.tp=3 does not divide the 4 ranks" in said
    assert main(["plan", *CONFIGS, "why=tp4"]) == 0
    said = capsys.readouterr().out
    assert "slower" in said
    assert "× the winner's" in said
    assert main(["plan", *CONFIGS, "cluster.device.memory_gib=0.02", "why=dp4,zero0"]) == 0
    said = capsys.readouterr().out
    assert "out of memory" in said
    assert "GiB too much" in said
    assert files(folder) == set()
    assert main(["plan", *CONFIGS, "why=tp4", "--out", "p.yaml"]) == 0
    assert files(folder) == {"p.yaml"}


def test_a_question_is_answered_where_nothing_fits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tight = [*CONFIGS, "cluster.device.memory_gib=0.001"]
    assert main(["plan", *tight, "why=dp4"]) == 0
    said = capsys.readouterr().out
    assert "out of memory" in said
    assert "none: no layout fits" in said
    assert main(["plan", *tight, "why=dp4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["why"]["over_gib"] > 0
    assert main(["plan", *tight, "why=dp4", "--explain"]) == 2
    assert main(["plan", *CONFIGS, "batch.seq_len=4096", "why=dp4"]) == 2
    assert "longer than model.max_seq_len=128" in capsys.readouterr().err


def test_what_overrides_fix_is_asked_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *CONFIGS, "parallel.zero=2", "why=dp4", "--json"]) == 0
    why = json.loads(capsys.readouterr().out)["why"]
    assert why["asked"] == "parallel.zero=2 parallel.dp=4"
    assert "zero2" in why["layout"]
    assert why["among"] == "parallel.zero=2"
    assert main(["plan", *CONFIGS, "parallel.tp=4", "why=dp1"]) == 0
    assert "it is the best layout with parallel.tp=4" in capsys.readouterr().out


def test_json_has_the_answers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *CONFIGS, "why=tp4", "--explain", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(0 <= plan["oom_probability"] <= 1 for plan in report["plans"])
    best, why = report["plans"][0], report["why"]
    assert why["verdict"] == "slower"
    assert set(why["difference_s"]) == set(PARTS)
    assert sum(why["difference_s"].values()) == pytest.approx(why["step_s"] - best["step_s"])
    modules = report["explain"]["modules"]
    assert sum(row["step_s"] for row in modules) == pytest.approx(best["step_s"])
    assert {case["what"] for case in report["explain"]["sensitivity"]} >= {"device rate", "sequence length"}
    assert report["explain"]["hints"] == []


def test_explain_shows_modules_what_bounds_and_hints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *KNOWN, "--explain"]) == 0
    said = capsys.readouterr().out
    for text in ("attention", "norms, residuals", "optimizer", "halved", "bound by", "model.ffn_dim=14"):
        assert text in said
    assert "hint " in said
    assert "OOM" in said
    assert max(map(len, said.splitlines())) <= 80


def test_all_files_are_written_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports = ["--export", "deepspeed", "d.json", "--export", "megatron", "new/m.sh"]
    assert main(["plan", *CONFIGS, "parallel.pp=1", "--picture", "p.png", *exports]) == 0
    assert files(folder) == {"plan.yaml", "d.json", "new", "p.png"}
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path("d.json").read_text())["zero_optimization"]["stage"] in (0, 1, 2, 3)
    said = capsys.readouterr().out
    assert all(name in said for name in ("trainsys train plan.yaml", "d.json", "new/m.sh", "p.png"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["why=fast"], "why=fast names no part of a layout"),
        (["why="], "why= names no layout"),
        (["why=zero7"], "parallel.zero=7 is unknown"),
        (["--elastic", "--nodes-lost", "2"], "leaves none of cluster.nodes=2; set it to 1 or less"),
        (["why=tp2", "why=tp4"], "why= is given twice"),
        (["--why", "tp2"], "use why=tp2"),
        (["--export", "horovod", "x"], "--export horovod is unknown; use megatron"),
        (["--export", "deepspeed", "d.json", "parallel.pp=2"], "cannot say parallel.pp=2"),
        (["--picture", "p.bmp"], "must end in .png"),
        (["--export", "deepspeed", "plan.yaml"], "name one file twice"),
        (["parallel.pp=1", "--export", "deepspeed", "configs"], "configs cannot be written: Is a directory"),
        (["--picture", "/dev/null/p.png"], "/dev/null/p.png cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert main(["plan", *CONFIGS, *args]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err
    assert files(folder) == set()


ELASTIC = [
    *CONFIGS, "cluster.shared_cores=false", "cluster.device.tflops=0.01", "cluster.intra_node.gbps=100",
    "cluster.inter_node.gbps=100", "batch.global_size=6", "batch.microbatch_size=2", "parallel.cp=1", "--elastic",
    "--out", "p.yaml",
]  # fmt: skip


def test_what_earns_most_where_nodes_fail_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fastest plan has one team of four ranks: with a node of two lost, none is whole."""
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", *ELASTIC]) == 0
    said = capsys.readouterr().out
    assert "written    dp1·tp4·pp1" in said
    assert "stops: needs ≥ 4 ranks, 0 in whole teams of parallel.tp=4" in " ".join(said.split())
    assert load(["p.yaml"]).parallel.tp == 4
    assert main(["plan", *ELASTIC, "cluster.node_mtbf_hours=4", "--explain"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "more than the fastest, dp1·tp4·pp1" in said
    assert load(["p.yaml"]).parallel.pp == 2
    assert main(["plan", *ELASTIC, "cluster.node_mtbf_hours=4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    first, *others = report["elastic"]["plans"]
    assert report["elastic"]["written"] == first["layout"] != report["plans"][0]["layout"]
    assert all(first["goodput"] > other["goodput"] for other in others)
    assert {s["change"] for s in first["successors"]} == {-1, 1}
    assert main(["plan", *CONFIGS, "--nodes-lost", "2"]) == 2
    assert "needs --elastic" in capsys.readouterr().err
