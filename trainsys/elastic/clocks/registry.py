"""Ways to set a device's clock, by the name in ``elastic.clocks``. A new one is one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from trainsys.config import RunConfig
from trainsys.elastic.own_device import device_of
from trainsys.planner.clocks import Clock, govern, settled, slowdowns
from trainsys.planner.timeline import timeline
from trainsys.schedule import simulate
from trainsys.space.layout import Layout

WAYS = {name: f"trainsys.elastic.clocks.{name}" for name in ("none", "nvml", "cpufreq", "emulated")}

_FLOORS = 8  # of the clocks of stages that wait; each is simulated while the layout changes


class Setter(Protocol):
    """One device's clock.

    Attributes:
        cap: what it can be.
        slowdown: how many times as long emulated stages take for it; 1 where it is a device's that does its own.
    """

    cap: Clock
    slowdown: float

    def set(self, clock: float) -> None: ...

    def reset(self) -> None: ...


def open_clock(name: str, device: int) -> Setter:
    """The clock of one device. Raises ValueError where it may not be set."""
    setter: Setter = importlib.import_module(WAYS[name]).open_clock(device)
    return setter


def check_clocks(config: RunConfig) -> None:
    """Whether there can be such clocks. Raises ValueError."""
    name, instead = config.elastic.clocks, "set elastic.clocks=none"
    if name == "emulated" and not config.train.emulate:
        raise ValueError(f"elastic.clocks=emulated is for train.emulate=true alone; {instead}")
    if name in ("none", "emulated"):
        return
    if name == "nvml" and config.cluster.device.backend != "nccl":
        raise ValueError(f"elastic.clocks=nvml is for GPUs, cluster.device.backend=gloo uses none; {instead}")
    if config.launcher != "local":
        raise ValueError(
            f"elastic.clocks={name}: with launcher={config.launcher} nobody puts back the clock of a rank that is "
            f"killed; {instead}"
        )
    here = config.cluster.nodes * config.cluster.ranks_per_node
    if name == "cpufreq" and here > 1:
        raise ValueError(f"elastic.clocks=cpufreq sets all cores of a machine, which {here} ranks share; {instead}")
    open_clocks(config)


def open_clocks(config: RunConfig) -> list[Setter]:
    """Those of this machine that ranks will set. Raises ValueError where they may not be set."""
    name = config.elastic.clocks
    ranks = range(config.cluster.nodes * config.cluster.ranks_per_node) if name != "none" else range(0)
    return [open_clock(name, device) for device in sorted({device_of(config, rank).index or 0 for rank in ranks})]


def clock_of(config: RunConfig, layout: Layout, rank: int, cap: Clock) -> float:
    """The clock of `rank` under `layout`, all ranks having devices like its own.

    Who has more to do gets a higher one, and who waits a lower one as far as the planned step stays as short.

    Args:
        config: with the layout's degrees.
    """
    planned = timeline(config)
    schedule, busy_s = planned.schedule, planned.run.busy_s
    stage_of = {lane: layout.runs[run][0] for (run, _), lane in schedule.placement.items()}
    work = [max(s for lane, s in enumerate(busy_s) if stage_of[lane] == stage) for stage in range(layout.pp)]
    caps = [cap] * len(work)

    def step_of(clocks: Sequence[float]) -> float:
        slow = slowdowns(clocks, caps)
        costs = replace(planned.costs, slow=[slow[stage_of[lane]] for lane in range(len(busy_s))])
        return simulate(schedule, costs).step_s

    governed = govern(work, caps)
    raised_s = step_of([max(1.0, clock) for clock in governed])
    return settled(governed, step_of, raised_s, _FLOORS)[layout.where(rank)[0]]
