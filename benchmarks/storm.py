"""The campaign: seeded storms of every nemesis over many layouts, each run held against its undisturbed one.

A row of the seed list is one run: a layout, the seed of its storm, how many faults, and their kinds. The reference of
a layout is trained once. Bits are promised where only dp, pp, ep, ZeRO and the routing change; where losing a rank cuts
sequences into fewer parts (cp), losses are held to a tolerance instead. A run that is already in --out is skipped.

    trainsys bench storm [--faults 1000] [--seeds benchmarks/storm_seeds.csv] [--out runs/storm.jsonl] [--json]
    trainsys bench storm --only 17                  one row of the list again, with its files left in runs/storm-17
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from trainsys.cli.arguments import Parser, at_least
from trainsys.config import RunConfig, load
from trainsys.elastic.agent import run_local
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.drill_plan import nemeses_of
from trainsys.elastic.drill_result import compare, idle_victims, not_struck, unplanned
from trainsys.elastic.faults import STEP_PHASES, FaultEvent
from trainsys.elastic.faults.random_storm import LEAST_GAP, random_storm
from trainsys.elastic.faults.zombies import read_zombies
from trainsys.elastic.goodput import goodput
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.recorder import Recorder

RUN = Path(__file__).parents[1] / "configs" / "run" / "storm.yaml"
SEEDS = Path(__file__).with_name("storm_seeds.csv")
LAYOUTS = {  # ranks per node (of 2 nodes), overrides
    "dp2·pp2 zero1": (2, "parallel.dp=2 parallel.pp=2 parallel.zero=1"),
    "dp4 zero0": (2, "parallel.dp=4 parallel.pp=1 parallel.zero=0"),
    "dp4 zero2": (2, "parallel.dp=4 parallel.pp=1 parallel.zero=2"),
    "dp4 zero3": (2, "parallel.dp=4 parallel.pp=1 parallel.zero=3"),
    "pp4": (2, "parallel.dp=1 parallel.pp=4 parallel.zero=0"),
    "dp2·tp2 zero1": (2, "parallel.dp=2 parallel.tp=2 parallel.pp=1 parallel.zero=1"),
    "dp3·pp2 zero1": (3, "parallel.dp=3 parallel.pp=2 parallel.zero=1"),
    "dp2·pp2·vp2 zero2": (2, "parallel.dp=2 parallel.pp=2 parallel.vp=2 parallel.schedule=interleaved parallel.zero=2"),
    "dp4·ep2 zero1": (2, "parallel.dp=4 parallel.pp=1 parallel.ep=2 parallel.zero=1 model.family=mixtral "
                         "model.num_experts=4"),
    "dp2·cp2 zero1": (2, "parallel.dp=2 parallel.cp=2 parallel.pp=1 parallel.zero=1"),
    "dp2·pp2·tp2 zero1": (4, "parallel.dp=2 parallel.pp=2 parallel.tp=2 parallel.zero=1"),
    "dp2·pp2 zero1, progressive": (2, "parallel.dp=2 parallel.pp=2 parallel.zero=1 elastic.release=progressive"),
    "dp2·pp2 zero1, in a pause": (2, "parallel.dp=2 parallel.pp=2 parallel.zero=1 elastic.move=pause"),
    "dp4 zero2, saving beside": (2, "parallel.dp=4 parallel.pp=1 parallel.zero=2 checkpoint.beside=true"),
    "dp3·pp2 zero1, delta": (3, "parallel.dp=3 parallel.pp=2 parallel.zero=1 elastic.snapshot=delta"),
    "dp4 zero1, two copies": (2, "parallel.dp=4 parallel.pp=1 parallel.zero=1 elastic.tolerate=2 "
                                 "elastic.snapshot=full"),
}  # fmt: skip
ROUNDING = 1e-4  # relative, of losses where fewer cp parts round otherwise (docs/numerics.md)
REJOIN_AFTER = 1
EPISODE = REJOIN_AFTER + LEAST_GAP  # steps
LONGEST = 16  # faults of a run, for whose steps the reference is trained


@dataclass(frozen=True)
class Case:
    """One row of the seed list; `nemeses` as in ``faults.nemeses``."""

    number: int
    layout: str
    seed: int
    faults: int
    nemeses: str


def read_seeds(path: Path) -> list[Case]:
    """The list. Raises ValueError naming file and line."""
    cases = []
    with path.open(newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            try:
                case = Case(number, row["layout"], int(row["seed"]), int(row["faults"]), row["nemeses"])
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}:{number + 2} is not layout,seed,faults,nemeses: {row}") from None
            if case.layout not in LAYOUTS or not 1 <= case.faults <= LONGEST:
                raise ValueError(f"{path}:{number + 2} names no layout that is known, or not 1 to {LONGEST} faults")
            cases.append(case)
    return cases


def config_of(layout: str, folder: Path | str, nemeses: str = "all") -> RunConfig:
    """The tiny run of storm.yaml in a layout."""
    per_node, overrides = LAYOUTS[layout]
    config = load([
        str(RUN), f"cluster.ranks_per_node={per_node}", f"train.steps={EPISODE * (LONGEST + 1)}", f"run_dir={folder}",
        "checkpoint.every=20", "checkpoint.keep=1", "elastic.heartbeat_limit_s=1.5", *overrides.split(),
    ])  # fmt: skip
    return replace(config, faults=replace(config.faults, schedule="", kills=0, nemeses=nemeses))


def storm_of(case: Case, config: RunConfig) -> tuple[FaultEvent, ...]:
    """Its faults."""
    world = config.cluster.nodes * config.cluster.ranks_per_node
    phases = [p for p in STEP_PHASES if p != "send"]
    return random_storm(
        case.seed, case.faults, world, config.train.steps, REJOIN_AFTER, nemeses_of(config), phases,
        share=0.0 if config.parallel.tp > 1 else 0.35,
    )  # fmt: skip


def train(config: RunConfig, events: Sequence[FaultEvent] = ()) -> tuple[Recorder, str]:
    """One run, and why it ended early."""
    with Recorder(config, config.run_dir, None) as recorder:
        try:
            run_local(config, recorder, events)
        except ElasticError as error:
            return recorder, str(error)
    if recorder.next_step < config.train.steps:
        raise KeyboardInterrupt  # a signal ended it
    return recorder, ""


class References:
    """The undisturbed run of each layout, trained once."""

    def __init__(self, root: Path) -> None:
        self._root, self._runs = root, dict[str, tuple[Recorder, Path]]()

    def of(self, layout: str) -> tuple[Recorder, Path]:
        """It, and its folder."""
        if layout not in self._runs:
            folder = self._root / f"reference-{len(self._runs)}"
            recorder, ended = train(config_of(layout, folder))
            assert not ended, ended
            self._runs[layout] = recorder, folder
        return self._runs[layout]


def run_case(case: Case, references: References, folder: Path) -> dict[str, Any]:
    """One storm, and what it cost."""
    config = config_of(case.layout, folder, case.nemeses)
    events = storm_of(case, config)
    reference, where = references.of(case.layout)
    began = time.monotonic()
    recorder, ended = train(config, events)
    seconds = time.monotonic() - began
    missing = not_struck(events, recorder)
    idle = idle_victims(events, recorder, missing)
    struck = [e for e in events if e.kind != "join" and str(e) not in missing]
    rounds = any(c.after is not None and c.after.cp != config.parallel.cp for c in recorder.changes)
    row = {
        **asdict(case), "ended": ended, "seconds": round(seconds, 1),
        "events": ",".join(map(str, events)), "struck": len(struck), "idle": len(idle),
        "kinds": dict(Counter(e.kind for e in struck)), "phases": dict(Counter(e.phase for e in struck)),
        "not_struck": [e for e in missing if e not in idle and not e.startswith("join")],
        "unplanned": unplanned(events, recorder, reference),
        "steps_redone": sum(change.redo for change in recorder.changes),
        "recover_s": [round(f.recover_s, 4) for f in recorder.faults if f.recover_s],
        "bits_promised": not rounds, **compare(config, recorder, reference),
        "within_rounding": _near(recorder, reference), "zombies": read_zombies(folder / "faults"),
    }  # fmt: skip
    results = check_run(folder, where, ROUNDING if rounds else 0.0)
    row["invariants"] = verdicts(results)
    row["violations"] = [f"{name} {v.where}: {v.text}" for name, found in results.items() for v in found.violations][:6]
    row["goodput"] = goodput(folder)
    row["good"] = good(row)
    return row


def _near(ours: Recorder, theirs: Recorder) -> bool:
    return all(
        abs(a.loss - b.loss) <= ROUNDING * abs(b.loss) for a, b in zip(ours.decisions, theirs.decisions, strict=False)
    )


def good(row: dict[str, Any]) -> bool:
    """Nothing lost or repeated, the promised bits, every invariant, no rank lost that nobody struck."""
    clean = not (row["ended"] or row["steps_lost"] or row["samples_lost"] or row["samples_repeated"])
    clean = clean and not (row["unplanned"] or row["not_struck"]) and False not in row["invariants"].values()
    clean = clean and all(zombie["ended"] == "by itself" for zombie in row["zombies"])
    return clean and (row["bit_equal_loss"] if row["bits_promised"] else row["within_rounding"])


def line(row: dict[str, Any]) -> str:
    """One case on the screen."""
    bits = "bit-equal" if row["bit_equal_loss"] else "within rounding" if row["within_rounding"] else "DIFFERS"
    worst = f"worst {max(row['recover_s']):.2f} s" if row["recover_s"] else ""
    text = (
        f"{row['number']:>4} {row['layout']:28} {row['struck']:>3} faults  lost {row['steps_lost']} steps "
        f"{row['samples_lost']} samples  {bits}  {row['seconds']:.0f} s  {worst}"
    )
    if row["good"]:
        return text
    why = row["ended"] or row["violations"] or row["unplanned"] or row["not_struck"] or row["zombies"]
    return f"{text}  FAILED{f': {why}' if why else ''}"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of all cases."""
    kinds, phases, recover = Counter[str](), Counter[str](), sorted(s for r in rows for s in r["recover_s"])
    for row in rows:
        kinds.update(row["kinds"])
        phases.update(row["phases"])
    return {
        "runs": len(rows), "faults": sum(r["struck"] for r in rows), "good": sum(r["good"] for r in rows),
        **{key: sum(r[key] for r in rows) for key in ("steps_lost", "samples_lost", "samples_repeated", "idle")},
        "bit_equal_of_promised": [sum(bool(r["bit_equal_loss"]) for r in rows if r["bits_promised"]),
                                  sum(r["bits_promised"] for r in rows)],
        "invariants": {name: all(r["invariants"].get(name) is not False for r in rows) for name in
                       sorted({name for r in rows for name in r["invariants"]})},
        "recover_median_s": recover[len(recover) // 2] if recover else None,
        "recover_worst_s": recover[-1] if recover else None,
        "kinds": dict(sorted(kinds.items())), "phases": dict(sorted(phases.items())),
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench storm", __doc__.splitlines()[0], "  trainsys bench storm --out runs/storm.jsonl")
    parser.add_argument("--faults", type=int, default=1000, help="until so many have struck")
    parser.add_argument("--seeds", type=Path, default=SEEDS)
    parser.add_argument("--out", type=Path, help="one line of JSON per run; runs that are there are skipped")
    parser.add_argument("--only", type=int, action="append", default=[], help="this row of the list; keeps its files")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    at_least("--faults", args.faults)
    cases = read_seeds(args.seeds)
    if missing := set(args.only) - {case.number for case in cases}:
        raise ValueError(f"--only {min(missing)} is no row of --seeds {args.seeds}; rows are 0 to {len(cases) - 1}")
    rows = [json.loads(text) for text in args.out.read_text().splitlines()] if args.out and args.out.exists() else []
    known = {astuple(case) for case in cases if case.number not in args.only}
    rows = [row for row in rows if tuple(row.get(f.name) for f in fields(Case)) in known]
    done = {row["number"] for row in rows}
    with tempfile.TemporaryDirectory(prefix="trainsys-storm-") as root:
        references = References(Path(root))
        for case in cases:
            if case.number in done or (args.only and case.number not in args.only):
                continue
            if not args.only and sum(row["struck"] for row in rows) >= args.faults:
                break
            folder = Path("runs" if args.only else root) / f"storm-{case.number}"
            row = run_case(case, references, folder)
            rows.append(row)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                with args.out.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
            if not args.json:
                print(line(row), flush=True)
    total = summary(rows)
    print(json.dumps({"rows": rows, **total}) if args.json else json.dumps(total, indent=1))
    return 0 if rows and all(row["good"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
