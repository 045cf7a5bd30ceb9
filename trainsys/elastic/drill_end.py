"""A drill that must end early: state is lost, or a copy is found to differ, and one clear line says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainsys.config import RunConfig
from trainsys.elastic.check.registry import check_run, verdicts
from trainsys.elastic.drill_folder import cleared, interrupted
from trainsys.elastic.drill_plan import planned_faults
from trainsys.elastic.drill_result import not_struck, with_reasons
from trainsys.elastic.faults.notes import nothing_there
from trainsys.elastic.launchers import launch
from trainsys.elastic.phase import ElasticError
from trainsys.elastic.progress import Screen
from trainsys.elastic.recorder import Recorder
from trainsys.models.geometry import resolve, tensors
from trainsys.models.stand_in import stand_in


def drill_to_the_end(config: RunConfig, console: Screen | None = None) -> dict[str, Any]:
    """Train under ``faults.schedule`` until it ends as ``faults.expect`` says; report.json has what is returned.

    Returns:
        ``ended`` (the reason), ``steps`` committed before, ``faults``, ``not_struck``, ``nothing_there``,
        ``invariants``, and ``passed``: the line names a tensor, the faults struck, and no invariant is violated, I7
        among them: nobody who was left held what is called lost.

    Raises:
        ValueError: for a schedule that cannot strike, or without a history to judge by.
        KeyboardInterrupt: it was stopped before its last step.
    """
    if not config.elastic.history:
        raise ValueError(f"faults.expect={config.faults.expect} needs elastic.history=true to be judged by")
    config = replace(config, checkpoint=replace(config.checkpoint, dir=""))
    events, folder = planned_faults(config), Path(config.run_dir)
    with cleared(config):
        reason = ""
        with Recorder(config, folder, console) as recorder:
            try:
                launch(config, recorder, events)
            except ElasticError as error:
                reason = str(error)
        if not reason and recorder.next_step < config.train.steps:
            raise interrupted(recorder)
        found = check_run(folder)
        result = {
            "expect": config.faults.expect,
            "ended": reason,
            "steps": recorder.next_step,
            "faults": [fault.as_dict() for fault in recorder.faults],
            "not_struck": not_struck(events, recorder),
            "nothing_there": nothing_there(folder / "faults"),
            "invariants": verdicts(found),
        }
        counted = bool(found["I7"].checked["ends for lost state"])
        clear = counted if config.faults.expect == "lost" else reason.startswith("census: ") and _names(config, reason)
        result["passed"] = clear and not result["not_struck"] and False not in verdicts(found).values()
        (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def _names(config: RunConfig, reason: str) -> bool:
    """Whether it says which tensor."""
    model = stand_in(config.model) if config.train.emulate else resolve(config.model)
    return any(tensor.name in reason for tensor in tensors(model))


def tell_end(result: dict[str, Any]) -> list[str]:
    """The last screen."""
    asked = {"lost": "state that is lost", "found": "a copy that differs"}[result["expect"]]
    if result["ended"]:
        verdict = "as expected" if result["passed"] else f"which does not tell of {asked} as it should"
        told = [f"Ended after {result['steps']} steps, {verdict}:", f"  {result['ended']}"]
    else:
        told = [f"The run went on to its end, though {asked} was expected to end it."]
    if result["not_struck"]:
        told.append(f"Never struck: {with_reasons(result['not_struck'], result['nothing_there'])}.")
    return told
