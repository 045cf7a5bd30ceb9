"""Published measurements, as rows of CSV files, and the jobs that they describe."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, TextIO, cast

import yaml

from trainsys.perf.device import device
from trainsys.perf.job import Degrees, Fabric, Job, Recompute, Shape
from trainsys.perf.software import software

COLUMNS = tuple(
    """
    set row model layers hidden ffn heads kv_heads vocab seq mlp attention tied_embeddings experts topk expert_ffn
    shared_experts dense_layers device devices devices_per_node inter_gbps_per_node tp pp vp dp cp ep zero mbs gbs
    schedule recompute seq_parallel precision compile step_s tflops_per_device tokens_per_s_per_device mfu_pct
    peak_gib oom flop_convention source note
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        where: file and line.
        group: its set, or the part of it that is judged apart.
        step_s, peak_gib: None where nothing was measured.
        oom: it ran out of memory; None where that is not known.
    """

    where: str
    group: str
    model: str
    job: Job
    step_s: float | None
    peak_gib: float | None
    oom: bool | None


class _UnknownError(ValueError):
    """A size that the model needs and the source does not print."""


def read(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of one file, and why others were left out: sizes that their source does not print.

    Raises:
        ValueError: naming file, line and column of what cannot be read.
    """
    with _lines(path) as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}, line 1: column {missing[0]} is missing; the schema is {','.join(COLUMNS)}")
        rows, left_out = [], []
        for cells in reader:
            try:
                rows.append(_row(cells, f"{path}, line {reader.line_num}"))
            except _UnknownError as error:
                left_out.append(str(error))
        return rows, left_out


@contextmanager
def _lines(path: Path) -> Iterator[TextIO]:
    """An open file. Raises ValueError, naming it, for what is no text or cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield file
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


class _Cells:
    """One line's cells; the empty ones are None."""

    def __init__(self, cells: Mapping[str, Any], where: str) -> None:
        self.where = where
        if None in cells or None in cells.values():
            raise ValueError(f"{where}: {'more' if None in cells else 'fewer'} cells than columns")
        self.text = {name: str(value).strip() for name, value in cells.items()}

    def number(self, name: str) -> float | None:
        try:
            value = float(self.text[name]) if self.text[name] else None
        except ValueError:
            raise ValueError(f"{self.where}, column {name}: {self.text[name]!r} is not a number") from None
        if value is not None and not isfinite(value):
            raise ValueError(f"{self.where}, column {name}: {self.text[name]} is not finite")
        return value

    def measured(self, name: str) -> float | None:
        """A number that must be positive where there is one."""
        value = self.number(name)
        if value is not None and value <= 0:
            raise ValueError(f"{self.where}, column {name}: {self.text[name]} must be positive")
        return value

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.count(name, default)
        if value < 1:
            raise ValueError(f"{self.where}, column {name}: {value} must be at least 1")
        return value

    def one_of(self, name: str, *choices: str) -> str:
        if self.text[name] not in choices:
            known = ", ".join(choice or "nothing" for choice in choices)
            raise ValueError(f"{self.where}, column {name}: {self.text[name]!r} is none of {known}")
        return self.text[name]

    def count(self, name: str, default: int | None = None) -> int:
        value = self.number(name)
        if value is None:
            if default is None:
                raise _UnknownError(f"{self.where}, column {name}: not printed")
            return default
        if value != int(value) or value < 0:
            raise ValueError(f"{self.where}, column {name}: {self.text[name]} is not a whole number")
        return int(value)

    def chosen(self, table: str) -> Any:
        """The first entry of `table` in sets.yaml that matches."""
        for entry in _sets()[table]:
            if all(re.search(pattern, self.text[name]) for name, pattern in entry["when"].items()):
                return entry["use"]
        return None


@lru_cache(maxsize=1)
def _sets() -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load(Path(__file__).with_name("sets.yaml").read_text()))


def _row(values: Mapping[str, Any], where: str) -> Row:
    cells = _Cells(values, where)
    part = re.search(_sets()["parts"].get(cells.text["set"], r"(?!)"), cells.text["note"])
    try:
        job = _job(cells)
    except _UnknownError:
        raise
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    oom = cells.one_of("oom", "0", "1", "") if cells.text["recompute"] else ""  # what is not said decides it
    return Row(
        where,
        cells.text["set"] + (f"_{part[1]}" if part else ""),
        cells.text["model"],
        job,
        cells.measured("step_s"),
        cells.measured("peak_gib"),
        {"0": False, "1": True}.get(oom),
    )


def _job(cells: _Cells) -> Job:
    count, text = cells.positive, cells.text
    name, recompute = cells.chosen("software"), text["recompute"] or "none"
    if recompute not in ("none", "selective", "full"):
        raise ValueError(f"{cells.where}, column recompute: {recompute!r} is none of none, selective, full")
    shape = _shape(cells)
    degrees = _degrees(cells, shape.layers)
    if degrees.devices != count("devices"):
        raise ValueError(f"{cells.where}: dp·tp·pp·cp={degrees.devices} but devices={count('devices')}")
    microbatch = count("mbs", 1)
    return Job(
        shape=shape,
        degrees=degrees,
        device=device(text["device"]),
        fabric=_fabric(cells),
        software=software(name),
        seq=count("seq"),
        microbatch=microbatch,
        global_batch=count("gbs"),
        precision=text["precision"] or "bf16",
        recompute=cast(Recompute, recompute),
        sequence_parallel=(text["seq_parallel"] or str(int(name == "megatron-core"))) == "1",
        slowdown=cells.chosen("slowdown") or 1.0,
        ends_count=bool(cells.chosen("ends_count")),
    )


def _shape(cells: _Cells) -> Shape:
    count, size = cells.count, cells.positive
    heads = count("heads", 0) or _likely_heads(size("hidden"), size("tp", 1))
    return Shape(
        layers=size("layers"),
        hidden=size("hidden"),
        ffn=count("ffn", 0),
        heads=heads,
        kv_heads=count("kv_heads", 0) or heads,
        head_dim=cells.chosen("head_dim") or count("hidden") // heads,
        vocab=size("vocab"),
        gated=cells.one_of("mlp", "gelu", "swiglu") == "swiglu",
        tied=cells.one_of("tied_embeddings", "0", "1", "") == "1",
        experts=count("experts", 0),
        topk=count("topk", 0),
        expert_ffn=count("expert_ffn", 0),
        shared_experts=count("shared_experts", 0),
    )


def _likely_heads(hidden: int, tp: int) -> int:
    """Where heads are not printed: of about 128 elements each, as tp can split."""
    fitting = [n for n in range(tp, hidden // 32 + 1, tp) if hidden % n == 0]
    return min(fitting, key=lambda n: abs(hidden / n - 128), default=tp)


def _degrees(cells: _Cells, layers: int) -> Degrees:
    """Where it is not printed: an interleaved schedule has one layer per run, and DeepSpeed runs ZeRO-1."""
    pp = cells.positive("pp", 1)
    runs = max(1, layers // pp) if cells.text["schedule"] == "interleaved" else 1
    names = ("dp", "tp", "cp", "ep")
    return Degrees(
        pp=pp,
        vp=cells.positive("vp", runs),
        zero=cells.count("zero", int(cells.chosen("software") == "megatron-deepspeed")),
        **{name: cells.positive(name, 1) for name in names},
    )


def _fabric(cells: _Cells) -> Fabric:
    nics = cells.measured("inter_gbps_per_node")
    if nics is None:
        name = cells.text["device"].split("-")[0]
        nics = _sets()["nic_gbps_per_node"].get(name, 400)
    usual = Fabric(cells.positive("devices_per_node", 8), nics / 8)
    return replace(usual, reached=cells.chosen("reached") or usual.reached)


def read_all(paths: Sequence[Path]) -> tuple[list[Row], list[str]]:
    """The rows of files, and of the files of folders that have the schema; and why others were left out.

    Raises:
        ValueError: for a file or row that cannot be read, or no row at all.
    """
    rows, left_out = [], []
    for path in paths:
        for file in sorted(path.glob("*.csv")) if path.is_dir() else [path]:
            if path.is_dir() and not _has_schema(file):
                left_out.append(f"{file}: columns of its own")
                continue
            more, without = read(file)
            rows += more
            left_out += without
    if not rows:
        raise ValueError(f"{', '.join(map(str, paths))}: no row to judge")
    return rows, left_out


def _has_schema(file: Path) -> bool:
    with _lines(file) as lines:
        return set(COLUMNS) <= set(next(csv.reader(lines), ()))
