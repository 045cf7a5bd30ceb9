"""A soak: one seeded storm after the other until the time is up, with a page that says how it stands."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainsys.config import FaultsConfig, RunConfig
from trainsys.elastic.drill import run_drill
from trainsys.elastic.drill_folder import cleared
from trainsys.elastic.drill_result import with_reasons
from trainsys.elastic.faults.zombies import BY_ITSELF
from trainsys.elastic.launchers import launch
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.progress import Screen
from trainsys.elastic.recorder import Recorder
from trainsys.elastic.soak_page import Page


class Tally:
    """What all runs of a soak came to."""

    def __init__(self, hours: float) -> None:
        self.until_s, self._began = hours * 3600, time.monotonic()
        self.runs = self.failed = self.steps = 0
        self.faults, self.costs = Counter[str](), Counter[str]()
        self.invariants: dict[str, bool] = {}
        self.worst_s, self._goodput = 0.0, list[float]()
        self.failures: list[dict[str, Any]] = []

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        return self.elapsed_s >= self.until_s

    def add(self, result: dict[str, Any], passed: bool) -> None:
        """One run's report."""
        self.runs += 1
        self.steps += result["steps"]
        self.faults.update(strike["kind"] for strike in result["strikes"])
        self.costs.update({key: result[key] for key in ("steps_lost", "samples_lost", "samples_repeated")})
        for name, holds in result["invariants"].items():
            self.invariants[name] = self.invariants.get(name, True) and holds is not False
        self.worst_s = max([self.worst_s, *(f["recover_s"] or 0.0 for f in result["faults"])])
        if result["goodput"]:
            self._goodput.append(result["goodput"]["useful"])
        self.failed += not passed

    def summary(self) -> dict[str, Any]:
        """As soak.json has it. ``goodput`` is the mean share of useful time, None before the first run has ended."""
        return {
            "elapsed_s": self.elapsed_s,
            "runs": self.runs,
            "failed": self.failed,
            "steps": self.steps,
            "faults": dict(sorted(self.faults.items())),
            **{key: self.costs[key] for key in ("steps_lost", "samples_lost", "samples_repeated")},
            "worst_recover_s": self.worst_s,
            "goodput": sum(self._goodput) / len(self._goodput) if self._goodput else None,
            "invariants": dict(sorted(self.invariants.items())),
            "failures": self.failures,
        }


def soak(config: RunConfig, hours: float, console: Screen | None = None) -> dict[str, Any]:
    """Drill with the seeds ``faults.seed``, the next one, … until `hours` have passed, or SIGINT.

    The undisturbed run is done once. Folders of runs that passed are removed, those of others stay as ``seed-N``.

    Returns:
        the summary, which is soak.json as well.

    Raises:
        ValueError: nothing in the config depends on the seed, or the first storm cannot be.
    """
    faults = config.faults
    if not (faults.kills or faults.mtbf_s) or faults.expect != "survive":
        raise ValueError("--hours repeats random faults; set faults.kills or faults.mtbf_s, and faults.expect=survive")
    folder, tally = Path(config.run_dir), Tally(hours)
    with cleared(config), Page(console, tally) as page:
        try:
            page.print("the same steps undisturbed, once")
            reference = _undisturbed(config, folder / "undisturbed", page)
            seed = faults.seed
            while not tally.over and reference.next_step == config.train.steps:
                _once(
                    replace(config, faults=replace(faults, seed=seed)), folder / f"seed-{seed}", reference, tally, page
                )
                seed += 1
                (folder / "soak.json").write_text(json.dumps(tally.summary(), indent=1) + "\n")
        except KeyboardInterrupt:
            page.print("stopped")
    summary = tally.summary()
    (folder / "soak.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _undisturbed(config: RunConfig, folder: Path, page: Page) -> Recorder:
    quiet = replace(config, run_dir=str(folder), faults=FaultsConfig(), checkpoint=replace(config.checkpoint, dir=""))
    with Recorder(quiet, folder, page) as recorder:
        launch(quiet, recorder)
    return recorder


def _once(config: RunConfig, folder: Path, reference: Recorder, tally: Tally, page: Page) -> None:
    """One storm. Whatever ends it is its failure, and the soak goes on; input that is bad is told by the first."""
    seed = config.faults.seed
    try:
        done = run_drill(replace(config, run_dir=str(folder)), page, reference)
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError) and not tally.runs:
            raise
        _failed(error, seed, folder, tally, page)
        return
    tally.add(done.result, done.passed)
    if done.passed:
        shutil.rmtree(folder)
    else:
        tally.failures.append({"seed": seed, "why": why_failed(done.result)})
    page.print(f"seed {seed}: {'passed' if done.passed else 'FAILED'}")


def _failed(error: Exception, seed: int, folder: Path, tally: Tally, page: Page) -> None:
    """A storm that did not come to its end; ``traceback.txt`` in its folder tells more of a defect."""
    tally.runs += 1
    tally.failed += 1
    lines = str(error).strip().splitlines()
    why = " ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))  # of a traceback within
    if not isinstance(error, ElasticError):
        why = f"{type(error).__name__}: {why}"
        folder.mkdir(exist_ok=True)
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
    tally.failures.append({"seed": seed, "why": why})
    page.print(f"seed {seed}: {why}")


def why_failed(result: dict[str, Any]) -> str:
    """Everything for which a drill's result is none that passes."""
    why = [f"{name} violated" for name, holds in result["invariants"].items() if holds is False]
    why += [f"{with_reasons([event], result['nothing_there'])} never struck" for event in result["not_struck"]]
    why += [f"{who} lost though nobody killed it" for who in result["unplanned"]]
    why += [f"{result[key]} {key}" for key in ("steps_lost", "samples_lost", "samples_repeated") if result[key]]
    why += [f"zombie {z['rank']}: {z['ended']}" for z in result["zombies"] if z["ended"] != BY_ITSELF]
    bits = {"bit_equal_loss": "the loss", "bit_equal_grad_norm": "the gradient norm"}
    why += [f"{what} has other bits" for key, what in bits.items() if result[key] is False]
    return "; ".join(why)
