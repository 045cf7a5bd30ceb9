"""Whether a layout can share out its experts: classes of equal size whose replicas run in lockstep."""

from __future__ import annotations

import dataclasses

from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import resolve
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import schedule_of
from trainsys.schedule.lockstep import check_lockstep, together
from trainsys.schedule.schedule import ScheduleError


def check_experts(config: RunConfig) -> None:
    """Whether ``config.parallel.ep`` suits the model, the teams of every stage and the batch.

    Teams of one replica always run in lockstep; of several only where these do the same.

    Raises:
        ValueError: one line with the numbers and the knob to turn.
    """
    parallel, model = config.parallel, resolve(config.model)
    ep, stages = parallel.ep, Stages.of(config.model, parallel)
    if ep == 1:
        return
    if ep > model.num_experts:
        most = max(model.num_experts, 1)
        knob = max(d for d in range(1, most + 1) if all(stages.copies(stage) % d == 0 for stage in range(stages.count)))
        raise ValueError(f"parallel.ep={ep} exceeds model.num_experts={model.num_experts}; set parallel.ep={knob}")
    microbatches = config.batch.global_size // config.batch.microbatch_size
    for stage, replicas in enumerate(stages.replicas):
        if (copies := stages.copies(stage)) % ep:
            divisors = " or ".join(str(d) for d in range(1, ep) if copies % d == 0)
            who = f"{copies} teams (replicas·cp)" if stages.cp > 1 else f"{copies} replicas"
            raise ValueError(f"parallel.ep={ep} does not divide the {who} of stage {stage}; set parallel.ep={divisors}")
        if stages.cp % ep and microbatches % replicas:
            raise ValueError(
                f"parallel.ep={ep} runs replicas in lockstep, but stage {stage} has {microbatches} microbatches for "
                f"{replicas} replicas; set parallel.ep=1, or batch.global_size to a multiple of "
                f"{replicas * config.batch.microbatch_size}"
            )
    if not stages.even:
        _check_ragged(config, stages)


def _check_ragged(config: RunConfig, stages: Stages) -> None:
    """Replicas of one stage may be fed differently by stages with another number of them."""
    parallel, schedule = config.parallel, schedule_of(config, stages)
    groups = [
        [schedule.placement[stage, team // parallel.cp] for team in range(first, first + parallel.ep)]
        for stage, count in enumerate(stages.replicas)
        for first in range(0, count * parallel.cp, parallel.ep)
    ]
    try:
        check_lockstep(schedule, together(groups))
    except ScheduleError as error:
        raise ValueError(
            f"parallel.ep={parallel.ep} with parallel.stage_replicas={list(stages.replicas)}: {error}; set "
            "parallel.ep=1 or parallel.schedule=gpipe"
        ) from None


def largest_ep(config: RunConfig, parallel: ParallelConfig) -> int:
    """The most of ``config.parallel.ep`` that `parallel` can run: what remains of it when replicas are lost.

    None of it where replicas do not all do the same: who shares with whom depends on who survived, and only with equal
    ones does every pairing run in lockstep.
    """
    stages, microbatches = Stages.of(config.model, parallel), config.batch.global_size // config.batch.microbatch_size
    wanted = config.parallel.ep if stages.even and microbatches % stages.replicas[0] == 0 else 1
    for ep in (d for d in range(wanted, 1, -1) if wanted % d == 0):
        try:
            check_experts(dataclasses.replace(config, parallel=dataclasses.replace(parallel, ep=ep)))
        except ValueError:
            continue
        return ep
    return 1
