"""The command line: fast, one clear line on bad input, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainsys.cli.main import VERBS, main
from trainsys.elastic.phase import ElasticError

ROOT = Path(__file__).resolve().parents[2]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from trainsys.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'rich', 'numpy', 'omegaconf', 'matplotlib'} & set(sys.modules);"
        "assert code == 0 and not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    out = subprocess.run([sys.executable, "-m", "trainsys", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert all(verb in out.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", ["train", "drill", "simulate", "bench"])
def test_help_of_a_verb_teaches_by_example_without_torch(verb: str) -> None:
    code = (
        f"import sys; from trainsys.cli.main import main; code = main(['{verb}', '--help']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0
    assert f"trainsys {verb} " in out.stdout.partition("examples:")[2]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "did you mean train?"),
        (["frobnicate"], "unknown verb 'frobnicate'"),
        (["train"], "CONFIG"),
        (["train", "no-such.yaml"], "no-such.yaml does not exist"),
        (["train", "train.stpes=3"], "train.stpes"),
        (["train", "train.steps=many"], "train.steps"),
        (["train", "--jsno", "train.steps=3"], "--jsno"),
        (["train", "parallel.dp=3"], "parallel.dp"),
        (["train", "parallel.dp=2", "parallel.pp=2", "data.path=/no/such.txt"], "/no/such.txt"),
        (["drill", "parallel.dp=4", "faults.schedule=kill@5:9"], "rank 9"),
        (["drill", "parallel.dp=4", "faults.schedule=kill@5:1:lunch"], "lunch"),
        (["simulate", "parallel.schedule=zigzag"], "zigzag"),
        (["bench", "no-such"], "no-such"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"run_dir={tmp_path / 'run'}"] if len(argv) > 1 and argv[0] != "bench" else []
    assert main(argv + overrides) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("trainsys: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err or (argv[0] == "bench" and "checkout" in captured.err)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("error", "code"), [(ElasticError("no rank is left"), 1), (KeyboardInterrupt(), 130)])
def test_errors_become_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("trainsys.cli.train.run", run)
    assert main(["train"]) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainsys.cli.train.run", lambda argv: {}["missing"])
    with pytest.raises(KeyError):
        main(["train"])


def test_simulate_prints_numbers_that_agree_and_writes_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "simulate",
        str(ROOT / "configs/run/tiny.yaml"),
        "--json",
        "--out",
        str(tmp_path),
        "parallel.schedule=gpipe",
    ]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schedule"] == "gpipe"
    assert found["bubble"] == pytest.approx(1 - found["ideal_s"] / found["step_s"])
    assert found["peak_activations"] == [4, 4, 4, 4]  # 8 microbatches over 2 replicas, all alive at once
    assert (
        sum(action.count("F") for action in found["actions"][0] if "SEND" not in action and "RECV" not in action) == 4
    )
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_output_into_a_closed_pipe_is_no_error() -> None:
    code = (
        "import sys; from trainsys.cli.main import main; import trainsys.cli.simulate as verb;"
        "verb.run = lambda argv: [print('x' * 100000, flush=True) for _ in range(9)] and 0;"
        "sys.exit(main(['simulate']))"
    )
    command = ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -c 1', sys.executable, code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (out.returncode, out.stderr) == (0, "")
