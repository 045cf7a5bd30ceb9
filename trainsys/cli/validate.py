"""`trainsys validate`: the performance model against published measurements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from trainsys.cli.arguments import Parser, screen

if TYPE_CHECKING:
    from trainsys.validate.metrics import Prediction, Score

EXAMPLES = """\
  trainsys validate benchmarks/published
  trainsys validate bloom.csv --rows
  trainsys validate benchmarks/published --picture validate.png --json | jq .overall"""

ABOUT = """\
Predict step time and peak memory of every row of published measurements and say how far off the model is: per set, and
with --cases per model and number of devices. Errors are percent of the measured value; a positive bias means predicted
too slow. Regret is what the layout that the model would choose loses against the best one measured. The columns of the
files are explained in docs/validate.md."""


def run(argv: list[str]) -> int:
    """Validate. Raises ValueError for bad input."""
    parser = Parser("validate", ABOUT, EXAMPLES)
    parser.add_argument(
        "files", nargs="+", metavar="ROWS.csv|FOLDER", help="files of the published schema, or folders of them"
    )
    parser.add_argument("--rows", action="store_true", help="also every row, predicted beside measured")
    parser.add_argument("--cases", action="store_true", help="also every model and number of devices")
    parser.add_argument("--picture", metavar="FILE.png", help="a scatter plot, predicted over measured")
    parser.add_json("the scores")
    args = parser.parse_args(argv)
    from pathlib import Path

    from trainsys.validate.metrics import by_case, by_kind, by_set, predict, score
    from trainsys.validate.rows import read_all

    rows, left_out = read_all([Path(name) for name in args.files])
    predictions = [predict(row) for row in rows]
    sets = by_set(predictions)
    scores = {name: score(members) for name, members in sets.items()}
    cases = {name: {case: score(p) for case, p in by_case(members).items()} for name, members in sets.items()}
    kinds = {name: {kind: score(p) for kind, p in by_kind(members).items()} for name, members in sets.items()}
    if args.picture:
        from trainsys.validate.picture import draw

        draw(sets, Path(args.picture))
    if args.json:
        answer: dict[str, Any] = {
            "sets": {name: one.to_json() for name, one in scores.items()},
            "overall": score(predictions).to_json(),
            "cases": {name: {c: s.to_json() for c, s in of.items()} for name, of in cases.items()},
            "kinds": {name: {k: s.to_json() for k, s in of.items()} for name, of in kinds.items() if of},
            "left_out": left_out,
        }
        print(json.dumps(answer))
        return 0
    table: dict[str, Score] = {}
    for name, one in scores.items():
        table |= {name: one} | {f"  {name}, {kind}": s for kind, s in kinds[name].items()}
    _show(table | {"all": score(predictions)})
    if args.cases:
        _show({f"{name}: {case}": one for name, of in cases.items() for case, one in of.items()})
    if args.rows:
        for name, members in sets.items():
            _show_rows(name, members)
    for line in left_out:
        screen().print(f"left out: {line}")
    if args.picture:
        screen().print(f"{args.picture}: predicted over measured")
    return 0


def _show(scores: dict[str, Score]) -> None:
    from rich.table import Table

    columns = ("rows", "MAPE %", "bias %", "rank", "regret %", "GiB MAPE %", "OOM", "missed", "wrong")
    table = Table(box=None, header_style="bold")
    table.add_column("set", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, s in scores.items():
        known = s.oom.tp + s.oom.fp + s.oom.fn + s.oom.tn
        oom = (f"{s.oom.tp}", f"{s.oom.fn}", f"{s.oom.fp}") if known else ("", "", "")
        numbers = [_text(v, p) for v, p in ((s.mape, 1), (s.bias, 1), (s.spearman, 2), (s.regret, 1))]
        table.add_row(name, str(s.n), *numbers, _text(s.memory_mape, 1), *oom)
    screen().print(table)


def _show_rows(name: str, members: list[Prediction]) -> None:
    from rich.table import Table

    columns = ("model", "layout", "mbs", "step s", "predicted", "%", "peak GiB", "predicted", "%")
    table = Table(*columns, box=None, title=name)
    for p in members:
        d, job = p.row.job.degrees, p.row.job
        axes = "·".join(f"{axis}{getattr(d, axis)}" for axis in ("dp", "tp", "pp", "vp", "cp", "ep"))
        off = f"{p.step_error:+.1f}" if p.row.step_s else ""
        table.add_row(
            *(p.row.model, f"{axes} zero{d.zero}", str(job.microbatch), _text(p.row.step_s, 3), f"{p.step_s:.3f}", off),
            "OOM" if p.row.oom else _text(p.row.peak_gib, 1),
            f"{p.peak_gib:.1f}",
            f"{p.memory_error:+.1f}" if p.row.peak_gib else "",
        )
    screen().print(table)


def _text(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"
