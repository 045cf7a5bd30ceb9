"""The predicted step, action by action: the schedule of a config simulated with the planner's costs."""

from __future__ import annotations

from dataclasses import dataclass

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.communication import send_s
from trainsys.planner.compute import vocabulary_s
from trainsys.planner.device import rate
from trainsys.planner.predict import run_parts, run_sums
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import scales, schedule_of, split_passes
from trainsys.schedule import Costs, Schedule, Simulation, simulate


@dataclass(frozen=True)
class Timeline:
    """The schedule of one step and its simulation. `f_s` and `b_s` are seconds per run and microbatch."""

    schedule: Schedule
    run: Simulation
    f_s: tuple[float, ...]
    b_s: tuple[float, ...]

    @property
    def ideal_s(self) -> float:
        """The step if all lanes always computed: their mean busy time."""
        return sum(self.run.busy_s) / len(self.run.busy_s)


def timeline(config: RunConfig) -> Timeline:
    """Simulate every replica of ``config.parallel`` for one step, without gradient exchange and optimizer.

    Raises:
        ValueError: for an unknown schedule, or when the layout does not fit the cluster or the batch.
    """
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    schedule = schedule_of(config, stages)
    hosted = {lane: stages.team(stages.host(stage), r) for (stage, r), lane in schedule.placement.items()}

    def message(src: int, dst: int) -> float:
        return send_s(config, stages, topology, hosted[src], hosted[dst])

    def at(flops: float) -> Timeline:
        f_s, b_s = run_sums(run_parts(config, stages, topology, flops))
        once = vocabulary_s(config, stages, flops)
        f_s = tuple(f - s for f, s in zip(f_s, once, strict=True))
        b_s = tuple(b - 2 * s for b, s in zip(b_s, once, strict=True))
        s_s, t_s = split_passes(once, config.parallel.vocabulary)
        costs = Costs(f_s, b_s, send_s=message, scale=scales(config), s_s=s_s, t_s=t_s)
        return Timeline(schedule, simulate(schedule, costs), f_s, b_s)

    measured = rate(config.cluster, stages.num_ranks)
    result = at(measured.sustained(1))
    if measured.cores:  # as in `predict`: ranks that share cores compute faster while others wait
        result = at(measured.sustained((1 - result.run.bubble) * stages.num_ranks))
    return result
