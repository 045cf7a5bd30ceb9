"""The frameworks for which a plan can be written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainsys.config import RunConfig
from trainsys.planner.export.deepspeed import deepspeed_json
from trainsys.planner.export.megatron import megatron_args
from trainsys.planner.export.torchtitan import torchtitan_args, torchtitan_toml

EXPORTS: dict[str, Callable[[RunConfig], str]] = {
    "megatron": megatron_args,
    "torchtitan": torchtitan_args,
    "torchtitan-toml": torchtitan_toml,
    "deepspeed": deepspeed_json,
}


def export(target: str, config: RunConfig) -> str:
    """The text of a file with which `target` trains ``config.model`` on the layout ``config.parallel``.

    Raises:
        ValueError: for an unknown target, or a layout or model that it cannot express: says which key to fix.
    """
    if target not in EXPORTS:
        raise ValueError(f"--export {target} is unknown; use {', '.join(EXPORTS)}")
    if config.parallel.vocabulary != "ends":
        raise ValueError(
            f"--export {target}: it keeps the vocabulary at both ends of the pipeline, not on all stages; add "
            "parallel.vocabulary=ends and model.vocab_parts=1"
        )
    return EXPORTS[target](config)


def best_export(target: str, configs: Sequence[RunConfig]) -> tuple[str, RunConfig]:
    """The text for the first of `configs`, best first, that `target` can express, and that config.

    Raises:
        ValueError: it can express none; says what it lacks for the first.
    """
    refusals = []
    for config in configs:
        try:
            return export(target, config), config
        except ValueError as error:
            refusals.append(error)
    raise refusals[0]
