"""How a run begins (from the newest whole checkpoint, or at step 0) and how it ends, whatever launched it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from trainsys.config import RunConfig
from trainsys.elastic.claim import mark_training
from trainsys.elastic.manifest import Found, checkpoint_dir, find_checkpoint, retire, saved_steps, set_aside
from trainsys.elastic.recorder import Recorder


def newest(config: RunConfig) -> Found:
    """The checkpoint to go on from, if ``checkpoint.resume`` allows one. Raises ValueError as `find_checkpoint`."""
    return find_checkpoint(config) if config.checkpoint.resume else Found()


def announce(config: RunConfig, found: Found, say: Callable[[str], None]) -> bool:
    """Say where training begins, and put damaged checkpoints out of the way.

    Returns:
        Whether there is anything left to train.
    """
    for reason in found.rejected:
        say(f"{reason}; using {Path(found.path).name}")
    if found.step >= config.train.steps:
        say(f"{_all(config.train.steps)} already in {found.path}; raise train.steps to go on")
        return False
    if found.path:
        set_aside(config, found)
        say(f"resuming from {found.path} at step {found.step}")
        if found.changed:
            say(f"changed since that checkpoint: {', '.join(found.changed)}")
        if found.planned_steps != config.train.steps:
            say(
                f"train.steps={config.train.steps} was {found.planned_steps} when that checkpoint was made: the "
                "learning rate follows the new one from here on"
            )
    elif saved_steps(config):
        retire(config)
        say(f"starting over; the checkpoints in {checkpoint_dir(config)} are renamed to step-….old")
    if config.faults.schedule or config.faults.kills:
        say("faults are not carried out by train; use trainsys drill")
    mark_training(Path(config.run_dir))
    return True


def newest_saved(recorder: Recorder, found: Found) -> str:
    """The last whole checkpoint: of this run, or the one it began from; empty without any."""
    return next((path for _, path, error in reversed(recorder.saves) if not error), found.path)


def ending(recorder: Recorder, found: Found, again: str = "") -> str:
    """One line on how far training came and what is kept of it. `again`: how to go on, if not by ``trainsys train``."""
    config, kept = recorder.config, newest_saved(recorder, found)
    where = f"checkpoint in {kept}" if kept else "without a checkpoint"
    if recorder.next_step < config.train.steps:
        again = again or f"trainsys train {shlex.quote(str(Path(config.run_dir) / 'config.yaml'))}"
        return f"stopped after step {recorder.next_step} of {config.train.steps}; {where}; go on with: {again}"
    if config.train.emulate:
        done = recorder.next_step
        return f"emulated {done} step{'s'[: done != 1]}; there is nothing to save; record in {config.run_dir}"
    return f"trained {recorder.next_step} step{'s'[: recorder.next_step != 1]}; {where}; record in {config.run_dir}"


def _all(steps: int) -> str:
    return f"all {steps} steps are" if steps != 1 else "the only step is"
