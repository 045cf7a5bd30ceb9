"""Ways to set a device's clock, by the name in ``elastic.clocks``. A new one is one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from trainsys.config import RunConfig
from trainsys.parallel.engine import stages_of
from trainsys.planner.clocks import Clock, govern
from trainsys.planner.step_schedule import relative_costs
from trainsys.space.layout import Layout

WAYS = {name: f"trainsys.elastic.clocks.{name}" for name in ("off", "nvml", "cpufreq")}


class Setter(Protocol):
    """One device's clock.

    Attributes:
        cap: what it can be.
    """

    cap: Clock

    def set(self, clock: float) -> None: ...

    def reset(self) -> None: ...


def open_clock(name: str, device: int) -> Setter:
    """The clock of one device. Raises ValueError where it may not be set."""
    setter: Setter = importlib.import_module(WAYS[name]).open_clock(device)
    return setter


def open_clocks(config: RunConfig) -> list[Setter]:
    """Those of this machine that ranks will set. Raises ValueError where they may not be set."""
    from trainsys.elastic.worker import device_of

    name = config.elastic.clocks
    ranks = range(config.cluster.nodes * config.cluster.ranks_per_node) if name != "off" else range(0)
    return [open_clock(name, device) for device in sorted({device_of(config, rank).index or 0 for rank in ranks})]


def stage_work(config: RunConfig, layout: Layout) -> Sequence[float]:
    """What a replica of each stage has to do per step, in any unit: fewer replicas have more each."""
    stages = stages_of(config, layout)
    costs = relative_costs(config.model, stages, config.batch.seq_len, config.parallel.recompute == "full")
    return [(stages.total(costs.f_s, s) + stages.total(costs.b_s, s)) / stages.replicas[s] for s in range(stages.count)]


def clock_of(config: RunConfig, layout: Layout, rank: int, cap: Clock) -> float:
    """The clock of `rank` under `layout`, all ranks having devices like its own."""
    work = stage_work(config, layout)
    return govern(work, [cap] * len(work))[layout.where(rank)[0]]
