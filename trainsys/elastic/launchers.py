"""Who starts rank processes: one line for each way."""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.config import RunConfig
from trainsys.elastic.agent import run_local
from trainsys.elastic.faults import FaultEvent
from trainsys.elastic.ray_cluster import run_ray
from trainsys.elastic.record import Observer

LAUNCHERS = {"local": run_local, "ray": run_ray}


def launch(
    config: RunConfig, observer: Observer, faults: Sequence[FaultEvent] = (), resume: str = "", start_step: int = 0
) -> None:
    """Train as ``launcher`` says; arguments and errors as of `run_local`."""
    LAUNCHERS[config.launcher](config, observer, faults, resume, start_step)
