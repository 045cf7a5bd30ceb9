"""The drill: train under a fault schedule, train the same steps undisturbed, compare bit for bit."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.claim import claimed, is_drill, mark_drill
from trainsys.elastic.faults import CHANGE_PHASES, STEP_PHASES, FaultEvent, parse_faults, random_kills
from trainsys.elastic.launchers import launch
from trainsys.elastic.progress import Screen
from trainsys.elastic.recorder import Recorder
from trainsys.parallel.step import Decision
from trainsys.planner.predict import predict

_OUTPUTS = (
    "checkpoints", "faults", "history", "tensorboard", "undisturbed", "metrics.jsonl", "history.jsonl", "report.json",
    "report.md", "loss.png", "timeline.png", "trace.json",
)  # fmt: skip


@dataclass(frozen=True)
class Drill:
    """Both runs of a drill, and its result as plain data (the contents of report.json)."""

    config: RunConfig
    disturbed: Recorder
    undisturbed: Recorder
    result: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Nothing lost or repeated, the planned faults struck and no others, every loss the same to the bit, and no
        invariant violated."""
        r = self.result
        faults = r["not_struck"] or r["unplanned"]
        clean = not (r["steps_lost"] or r["samples_lost"] or r["samples_repeated"] or faults)
        clean = clean and False not in r["invariants"].values()
        return clean and (self.config.train.emulate or (r["bit_equal_loss"] and r["bit_equal_grad_norm"]))


def drill(config: RunConfig, console: Screen | None = None) -> dict[str, Any]:
    """Run both trainings, write the report into ``config.run_dir`` and return its contents.

    Raises:
        ValueError: for a schedule that cannot strike, or a run folder that holds a training run.
        ElasticError: the disturbed run could not go on.
        KeyboardInterrupt: it was stopped before its last step.
    """
    from trainsys.elastic.report import write_report

    done = run_drill(config, console)
    write_report(done)
    return done.result


def run_drill(config: RunConfig, console: Screen | None = None) -> Drill:
    """Both runs, without a report. Arguments and errors as in `drill`."""
    if config.parallel.reduction == "fast":
        raise ValueError(
            "parallel.reduction=fast does not promise the same bits after a change of layout, which is what a drill "
            "compares; set parallel.reduction=canonical"
        )
    config = replace(config, checkpoint=replace(config.checkpoint, dir=""))
    events = planned_faults(config)
    with claimed(config):
        _clear(Path(config.run_dir))
        return _both(config, events, console)


def _both(config: RunConfig, events: Sequence[FaultEvent], console: Screen | None) -> Drill:
    quiet = replace(config, run_dir=str(Path(config.run_dir) / "undisturbed"))
    predicted_s = predict(config, config.parallel).step_s
    steps = f"{config.train.steps} step{'s'[: config.train.steps != 1]}"
    _say(console, f"1 of 2: {steps} with faults {', '.join(map(str, events)) or 'none'}")
    disturbed = _run(config, events, console)
    _say(console, "2 of 2: the same steps undisturbed")
    undisturbed = _run(quiet, (), console)
    return Drill(config, disturbed, undisturbed, _result(config, events, disturbed, undisturbed, predicted_s))


def planned_faults(config: RunConfig) -> tuple[FaultEvent, ...]:
    """The faults that ``config.faults`` asks for, in phases that occur in ``config.parallel``.

    Raises:
        ValueError: one line, for a schedule that cannot be or a phase that never comes.
    """
    world = config.cluster.nodes * config.cluster.ranks_per_node
    faults, steps = config.faults, config.train.steps
    if faults.schedule and faults.kills:
        raise ValueError("faults.schedule and faults.kills are both set; set one of them")
    if not faults.schedule:
        parallel = config.parallel
        working = sum(parallel.stage_replicas or (parallel.dp,) * parallel.pp) * parallel.cp * parallel.tp
        phases = [p for p in STEP_PHASES if p != "send" or parallel.pp > 1]
        return random_kills(faults.seed, faults.kills, range(working), steps, faults.rejoin_after, phases)
    events = parse_faults(faults.schedule, world, steps)
    for event in events:
        if event.phase == "send" and config.parallel.pp == 1:
            raise ValueError(
                f"faults.schedule: {event} never strikes, nothing is sent with parallel.pp=1; name another phase"
            )
        if event.phase in CHANGE_PHASES and not any(_causes_change(e) and e.step <= event.step for e in events):
            raise ValueError(
                f"faults.schedule: {event} strikes during a change of layout, but nothing changes it at step "
                f"{event.step} or before; add a kill in a phase of the step, or a join"
            )
    return events


def _causes_change(event: FaultEvent) -> bool:
    return event.kind == "join" or event.phase not in CHANGE_PHASES


def _clear(run_dir: Path) -> None:
    """Remove what an earlier drill left; never a training run."""
    if not is_drill(run_dir) and ((run_dir / "checkpoints").exists() or (run_dir / "metrics.jsonl").exists()):
        raise ValueError(f"run_dir={run_dir} holds a training run that a drill would overwrite; set another run_dir")
    for name in _OUTPUTS:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    mark_drill(run_dir)


def _run(config: RunConfig, events: Sequence[FaultEvent], console: Screen | None) -> Recorder:
    with Recorder(config, config.run_dir, console) as recorder:
        launch(config, recorder, events)
    if recorder.next_step < config.train.steps:
        raise KeyboardInterrupt
    return recorder


def _result(
    config: RunConfig, events: Sequence[FaultEvent], disturbed: Recorder, undisturbed: Recorder, predicted_s: float
) -> dict[str, Any]:
    return {
        "steps": config.train.steps,
        **compare(config, disturbed, undisturbed),
        "faults": [fault.as_dict() for fault in disturbed.faults],
        "joins": [{"step": step, "rank": rank} for step, rank in disturbed.joins],
        "drains": [{"step": step, "rank": rank} for step, rank in disturbed.drains],
        "steps_redone": sum(change.redo for change in disturbed.changes),
        "not_struck": _not_struck(events, disturbed),
        "unplanned": _unplanned(events, disturbed, undisturbed),
        "predicted_step_s": predicted_s,
        "measured_step_s": median(undisturbed.step_s),
        "emulated": config.train.emulate,
        "invariants": _invariants(config),
    }


def _invariants(config: RunConfig) -> dict[str, bool | None]:
    """The disturbed run held against the undisturbed one, which must not violate any by itself; empty: no history."""
    if not config.elastic.history:
        return {}
    quiet = Path(config.run_dir) / "undisturbed"
    try:
        alone, held = verdicts(check_run(quiet)), verdicts(check_run(config.run_dir, quiet))
    except ValueError:  # nothing could be written
        return {"I0": False}
    return {name: False if alone[name] is False else holds for name, holds in held.items()}


def compare(config: RunConfig, disturbed: Recorder, undisturbed: Recorder) -> dict[str, Any]:
    """What the faults of one run cost, step by step against the other."""
    ours, theirs = by_step(disturbed.decisions), by_step(undisturbed.decisions)
    steps = config.train.steps
    both = [(ours[s], theirs[s]) for s in range(steps) if s in ours and s in theirs]
    lost, repeated = samples_lost_repeated(disturbed.samples, steps * config.batch.global_size)
    equal = {
        "bit_equal_loss": len(both) == steps and all(a.loss.hex() == b.loss.hex() for a, b in both),
        "bit_equal_grad_norm": len(both) == steps and all(a.grad_norm.hex() == b.grad_norm.hex() for a, b in both),
        "max_abs_loss_diff": max((abs(a.loss - b.loss) for a, b in both), default=0.0),
    }
    return {
        "steps_lost": sum(n - 1 for n in Counter(d.step for d in disturbed.decisions).values()) + steps - len(ours),
        "samples_lost": lost,
        "samples_repeated": repeated,
        **(dict.fromkeys(equal) if config.train.emulate else equal),
    }


def by_step(decisions: Sequence[Decision]) -> dict[int, Decision]:
    """The decision that stands for each step: the last one."""
    return {d.step: d for d in decisions}


def samples_lost_repeated(samples: Sequence[Sequence[int]], total: int) -> tuple[int, int]:
    """How many of the positions 0 … total-1 were never used, and how many uses were repeats or beyond."""
    used = Counter(position for step in samples for position in step)
    lost = sum(position not in used for position in range(total))
    repeated = sum(n - 1 if 0 <= position < total else n for position, n in used.items())
    return lost, repeated


def _not_struck(events: Sequence[FaultEvent], disturbed: Recorder) -> list[str]:
    """Planned faults that left no trace, in their own notation.

    A join counts when the rank was there for a change of layout, be it as a spare that the new layout leaves idle, or
    when a step was done while it stood by.
    """
    struck = {(f.kind, f.rank, f.phase) for f in disturbed.faults}
    drained = {rank for _, rank in disturbed.drains}
    lost = [e for e in events if e.kind in ("kill", "stop")]
    missing = [str(e) for e in lost if (e.kind, e.rank, e.phase) not in struck]
    missing += [str(e) for e in events if e.kind == "drain" and e.rank not in drained]
    joins = [e for e in events if e.kind == "join"]
    return missing + [str(e) for e in joins[_arrivals(disturbed.run_dir, disturbed.config.train.steps) :]]


def _arrivals(run_dir: Path, steps: int) -> int:
    """Ranks that joined after the first layout stood and before the last change, loss or step."""
    lines = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    events = [line["event"] for line in lines]
    first = events.index("changed")
    last = max(i for i, event in enumerate(events) if event in ("changed", "lost"))
    later = [i for i, event in enumerate(events) if event == "joined" and i > first]
    return sum(i < last or lines[i]["step"] < steps - 1 for i in later)


def _unplanned(events: Sequence[FaultEvent], disturbed: Recorder, undisturbed: Recorder) -> list[str]:
    """Ranks that were lost though nobody killed them: something is wrong with the run itself."""
    planned = Counter((e.kind, e.rank, e.phase) for e in events if e.kind != "join")
    mine = [f for f in disturbed.faults if not planned[f.kind, f.rank, f.phase]]
    told = [f"rank {f.rank} at step {f.step}" for f in mine]
    return told + [f"rank {f.rank} at step {f.step} of the undisturbed run" for f in undisturbed.faults]


def _say(console: Screen | None, sentence: str) -> None:
    if console is not None:
        console.print(sentence, markup=False, highlight=False)
