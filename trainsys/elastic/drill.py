"""The drill: train under a fault schedule, train the same steps undisturbed, compare bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.agent import run_local
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.drill_folder import cleared, interrupted
from trainsys.elastic.drill_plan import planned_faults
from trainsys.elastic.drill_result import (
    by_step,
    compare,
    idle_victims,
    not_struck,
    redone_for_leaving,
    samples_lost_repeated,
    unplanned,
)
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.faults.driver import left_strokes, strokes_of
from trainsys.elastic.faults.notes import nothing_there, read_notes
from trainsys.elastic.faults.zombies import BY_ITSELF, read_zombies
from trainsys.elastic.goodput import goodput
from trainsys.elastic.launchers import launch
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.progress import Screen
from trainsys.elastic.recorder import Recorder
from trainsys.planner.predict import predict

__all__ = [
    "Drill", "by_step", "compare", "drill", "planned_faults", "run_drill", "samples_lost_repeated",
]  # fmt: skip


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
        clean = clean and all(zombie["ended"] == BY_ITSELF for zombie in r["zombies"])
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


def run_drill(config: RunConfig, console: Screen | None = None, reference: Recorder | None = None) -> Drill:
    """Both runs, without a report; `reference`: the undisturbed one, if there is one already.

    Arguments and errors as in `drill`.
    """
    if config.faults.expect != "survive":
        raise ValueError(f"faults.expect={config.faults.expect} is for a run that ends; set faults.expect=survive")
    if config.parallel.reduction == "fast":
        raise ValueError(
            "parallel.reduction=fast does not promise the same bits after a change of layout, which is what a drill "
            "compares; set parallel.reduction=canonical"
        )
    config = replace(config, checkpoint=replace(config.checkpoint, dir=""))
    events = planned_faults(config)
    with cleared(config):
        return _both(config, events, console, reference)


def _both(
    config: RunConfig, events: Sequence[FaultEvent], console: Screen | None, undisturbed: Recorder | None
) -> Drill:
    quiet = replace(config, run_dir=str(Path(config.run_dir) / "undisturbed"))
    predicted_s = predict(config, config.parallel).step_s
    steps = f"{config.train.steps} step{'s'[: config.train.steps != 1]}"
    which = "" if undisturbed else "1 of 2: "
    _say(console, f"{which}{steps} with faults {', '.join(map(str, events)) or _clock(config)}")
    disturbed = _run(config, events, console, strokes=True)
    if undisturbed is None:
        _say(console, "2 of 2: the same steps undisturbed")
        undisturbed = _run(quiet, (), console)
    return Drill(config, disturbed, undisturbed, _result(config, events, disturbed, undisturbed, predicted_s))


def _clock(config: RunConfig) -> str:
    faults = config.faults
    by_trace = f"by {faults.trace}" if faults.trace else "none"
    return f"every {faults.mtbf_s:g} s on average" if faults.mtbf_s else by_trace


def _run(config: RunConfig, events: Sequence[FaultEvent], console: Screen | None, strokes: bool = False) -> Recorder:
    with Recorder(config, config.run_dir, console) as recorder:
        try:
            if strokes and (config.faults.mtbf_s or config.faults.trace):
                run_local(config, recorder, events, strokes=strokes_of(config.faults))
            else:
                launch(config, recorder, events)
        except ElasticError as error:
            raise ElasticError(f"{error} (a drill always begins anew)") from None
    if recorder.next_step < config.train.steps:
        raise interrupted(recorder)
    return recorder


def _result(
    config: RunConfig, events: Sequence[FaultEvent], disturbed: Recorder, undisturbed: Recorder, predicted_s: float
) -> dict[str, Any]:
    folder = disturbed.run_dir / "faults"
    missing = not_struck(events, disturbed) + left_strokes(folder)
    idle = idle_victims(events, disturbed, missing) if config.faults.kills else []  # chance may choose a spare
    return {
        "steps": config.train.steps,
        **compare(config, disturbed, undisturbed),
        "faults": [fault.as_dict() for fault in disturbed.faults],
        "takeovers": [takeover.as_dict() for takeover in disturbed.takeovers],
        "joins": [{"step": step, "rank": rank} for step, rank in disturbed.joins],
        "standing_by": list(disturbed.standing_by),
        "drains": [{"step": step, "rank": rank} for step, rank in disturbed.drains],
        "strikes": list({n["event"]: n for n in read_notes(folder) if n.get("event")}.values()),
        "zombies": read_zombies(folder),
        "saves_failed": [step for step, _, error in disturbed.saves if error],
        "steps_redone": sum(change.redo for change in disturbed.changes),
        "steps_redone_for_leaving": redone_for_leaving(disturbed),
        "not_struck": [e for e in missing if e not in idle],
        "idle": idle,
        "nothing_there": nothing_there(folder),
        "unplanned": unplanned(events, disturbed, undisturbed),
        "predicted_step_s": predicted_s,
        "measured_step_s": median(undisturbed.step_s),
        "emulated": config.train.emulate,
        "goodput": _goodput(config),
        "overhead": _overhead(disturbed, undisturbed),
        "invariants": _invariants(config, undisturbed.run_dir),
    }


def _overhead(disturbed: Recorder, undisturbed: Recorder) -> dict[str, Any]:
    """The median step between faults, under the first layout, against the undisturbed run's and their quartiles."""
    first, where = disturbed.changes[0].after, disturbed.layout_names
    steps = [s for s, name in zip(disturbed.step_s, where, strict=True) if name == str(first)]
    step_s, quiet_s = median(steps or disturbed.step_s), median(undisturbed.step_s)
    low_s, _, high_s = quantiles(undisturbed.step_s * 2, method="inclusive")  # twice: one step has quartiles, too
    return {
        "step_s": step_s, "undisturbed_step_s": quiet_s, "relative": step_s / quiet_s - 1,
        "undisturbed_quartiles_s": [low_s, high_s], "within_noise": low_s <= step_s <= high_s,
    }  # fmt: skip


def _goodput(config: RunConfig) -> dict[str, float] | None:
    """None: no history."""
    try:
        return goodput(config.run_dir) if config.elastic.history else None
    except ValueError:  # nothing could be written
        return None


def _invariants(config: RunConfig, quiet: Path) -> dict[str, bool | None]:
    """The disturbed run held against the undisturbed one, which must not violate any by itself; empty: no history."""
    if not config.elastic.history:
        return {}
    try:
        alone, held = verdicts(check_run(quiet)), verdicts(check_run(config.run_dir, quiet))
    except ValueError:  # nothing could be written
        return {"I0": False}
    return {name: False if alone[name] is False else holds for name, holds in held.items()}


def _say(console: Screen | None, sentence: str) -> None:
    if console is not None:
        console.print(sentence, markup=False, highlight=False)
