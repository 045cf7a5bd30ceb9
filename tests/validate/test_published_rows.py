"""Rows that cannot be read are named by line and column."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.validate.test_published import PUBLISHED
from trainsys.cli.main import main
from trainsys.validate.rows import read


def altered(tmp_path: Path, **cells: str) -> Path:
    """A file of one sound row with some cells replaced."""
    with (PUBLISHED / "sc21_t1.csv").open(newline="") as file:
        row = next(iter(csv.DictReader(file)))
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row | cells)
    return path


BAD = [
    ({"tp": "two"}, "line 2, column tp: 'two' is not a number"),
    ({"tp": "inf"}, "line 2, column tp: inf is not finite"),
    ({"step_s": "0"}, "line 2, column step_s: 0 must be positive"),
    ({"devices_per_node": "0"}, "line 2, column devices_per_node: 0 must be at least 1"),
    ({"mlp": "SwiGLU"}, "line 2, column mlp: 'SwiGLU' is none of gelu, swiglu"),
    ({"layers": "1.5"}, "line 2, column layers: 1.5 is not a whole number"),
    ({"device": "a900"}, "line 2: device 'a900' is unknown; known: a100-80gb-sxm, .*add it to .*devices.yaml"),
    ({"dp": "31"}, "line 2: dp·tp·pp·cp=31 but devices=32"),
    ({"gbs": "500"}, "line 2: global batch 500 is not divisible by dp·microbatch=32·16"),
    ({"recompute": "some"}, "line 2, column recompute: 'some' is none of none, selective, full"),
    ({"precision": "fp8"}, "device a100-80gb-sxm has no precision 'fp8'; use fp16, bf16"),
    ({"tp": "5", "dp": "32", "devices": "160", "gbs": "512"}, "line 2: heads=24 is not divisible by tp=5"),
]


@pytest.mark.parametrize(("cells", "message"), BAD)
def test_bad_rows_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cells: dict[str, str], message: str
) -> None:
    path = altered(tmp_path, **cells)
    assert main(["validate", str(path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(said.err)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("set,row\nx,1\n")
    with pytest.raises(ValueError, match=r"rows.csv, line 1: column model is missing; the schema is set,row,model"):
        read(path)


def test_short_and_long_lines_are_named(tmp_path: Path) -> None:
    path = altered(tmp_path)
    lines = path.read_text().splitlines()
    for line, what in ((lines[1] + ",more", "more"), (lines[1].rsplit(",", 3)[0], "fewer")):
        path.write_text(f"{lines[0]}\n{line}\n")
        with pytest.raises(ValueError, match=f"line 2: {what} cells than columns"):
            read(path)


def test_json_has_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert main(["validate", str(altered(tmp_path)), "--json", "--picture", str(tmp_path / "p.png")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer["sets"]) == {"sc21_t1"}
    keys = {"n", "mape", "bias", "spearman", "regret", "memory_mape", "oom"}
    assert set(answer["overall"]) == set(answer["sets"]["sc21_t1"]) == keys
    assert set(answer["overall"]["oom"]) == {"tp", "fp", "fn", "tn"}
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_what_is_no_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bin.csv"
    path.write_bytes(b"set,row\n\xff\xfe")
    for name in (path, tmp_path, "/proc/self/mem"):
        assert main(["validate", str(name)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(path if name == tmp_path else name) in error
