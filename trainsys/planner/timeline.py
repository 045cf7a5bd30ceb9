"""The predicted step, action by action: the schedule of a config simulated with the planner's costs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from trainsys.comm.topology import Topology
from trainsys.config import RunConfig
from trainsys.planner.communication import TensorCost, send_s
from trainsys.planner.compute import vocabulary_s
from trainsys.planner.device import rate
from trainsys.planner.footprint import RankMemory, rank_memory
from trainsys.planner.offload import offload_cost
from trainsys.planner.predict import run_parts, run_sums
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import scales, schedule_of, split_passes, weight_s
from trainsys.schedule import Costs, Schedule, Simulation, simulate


@dataclass(frozen=True)
class Timeline:
    """The schedule of one step and its simulation.

    Attributes:
        costs: seconds of the actions, per run of layers.
        memory: of a rank of each lane.
    """

    schedule: Schedule
    run: Simulation
    costs: Costs
    memory: tuple[RankMemory, ...]

    @property
    def ideal_s(self) -> float:
        """The step if all lanes always computed: their mean busy time."""
        return sum(self.run.busy_s) / len(self.run.busy_s)

    @property
    def peak_gib(self) -> tuple[float, ...]:
        """Per lane, the most that a rank of it holds at once."""
        return tuple(memory.peak_gib(self.run, lane) for lane, memory in enumerate(self.memory))

    def memory_curve(self, lane: int) -> list[tuple[float, float]]:
        """Memory of a rank of `lane` over time: (seconds, GiB from then on)."""
        return self.memory[lane].curve(self.run, lane)


def timeline(config: RunConfig) -> Timeline:
    """Simulate every replica of ``config.parallel`` for one step, without gradient exchange and optimizer.

    Raises:
        ValueError: for an unknown schedule, or when the layout does not fit the cluster or the batch.
    """
    stages = Stages.of(config.model, config.parallel)
    topology = Topology.from_config(config.cluster, stages.num_ranks, config.parallel.devices)
    schedule = schedule_of(config, stages)
    memory = rank_memory(config, stages, schedule.placement)

    def at(flops: float) -> Timeline:
        costs = step_costs(config, stages, topology, schedule, flops)
        return Timeline(schedule, simulate(schedule, costs), costs, memory)

    measured = rate(config.cluster, stages.num_ranks)
    result = at(measured.sustained(1))
    if measured.cores:  # as in `predict`: ranks that share cores compute faster while others wait
        result = at(measured.sustained((1 - result.run.bubble) * stages.num_ranks))
    return result


def step_costs(config: RunConfig, stages: Stages, topology: Topology, schedule: Schedule, flops: float) -> Costs:
    """Seconds of every action of `schedule` at `flops` per second of a rank.

    What the schedule does by actions of their own (R, OFFLOAD, RELOAD) is no part of F and B. What a backward sends
    within its team or waits for is part of I: W multiplies what lies on the device.
    """
    hosted = {lane: stages.team(stages.host(stage), r) for (stage, r), lane in schedule.placement.items()}

    def message(src: int, dst: int) -> float:
        return send_s(config, stages, topology, hosted[src], hosted[dst])

    inside = _without_actions(config)
    parts = run_parts(inside, stages, topology, flops)
    (compute, *_), (f_s, b_s) = parts, run_sums(parts)
    once = vocabulary_s(config, stages, flops)  # counted in F, and twice in B, as long as no pass has it
    f_s, b_s, backward_s = (
        tuple(s - times * part for s, part in zip(row, once, strict=True))
        for row, times in ((f_s, 1), (b_s, 2), (compute.backward_s, 2))
    )
    w_s = weight_s(inside, stages, backward_s)
    s_s, t_s = split_passes(once, config.parallel.vocabulary)
    copies = TensorCost.nothing(stages)
    if config.parallel.offload == "scheduled":
        copies = offload_cost(config, stages, topology)
    return Costs(
        f_s, b_s, send_s=message, i_s=tuple(b - w for b, w in zip(b_s, w_s, strict=True)), w_s=w_s,
        scale=scales(config), offload_s=copies.forward_s, reload_s=copies.backward_s, s_s=s_s, t_s=t_s,
    )  # fmt: skip


def _without_actions(config: RunConfig) -> RunConfig:
    """`config` less what its schedule has actions for."""
    parallel = config.parallel
    recompute = "none" if parallel.recompute == "stage" else parallel.recompute
    offload = "none" if parallel.offload == "scheduled" else parallel.offload
    return dataclasses.replace(config, parallel=dataclasses.replace(parallel, recompute=recompute, offload=offload))
