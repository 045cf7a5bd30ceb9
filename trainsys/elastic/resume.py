"""How a run begins: from the newest whole checkpoint, or at step 0; the same under the agent and under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainsys.config import RunConfig
from trainsys.elastic.manifest import Found, checkpoint_dir, find_checkpoint, saved_steps, set_aside


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
        say(f"all {config.train.steps} steps are already in {found.path}; raise train.steps to go on")
        return False
    if found.path:
        set_aside(config, found)
        say(f"resuming from {found.path} at step {found.step}")
        if found.planned_steps != config.train.steps:
            say(
                f"train.steps={config.train.steps} was {found.planned_steps} when that checkpoint was made: the "
                "learning rate follows the new one from here on"
            )
    elif saved_steps(config):
        say(f"starting over; the first checkpoint will replace those in {checkpoint_dir(config)}")
    return True
