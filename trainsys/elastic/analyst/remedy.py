"""What to do about slow ranks: give them less, go on without them, or nothing. Pure.

Less is fewer microbatches where the stage has other replicas, or fewer layers for the stage. A step is simulated action
by action with each lane's factor, messages left out: times are relative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import forward_flops
from trainsys.planner.predict import worst_memory
from trainsys.planner.rebalance import rebalance
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import relative_costs, schedule_of
from trainsys.schedule import simulate
from trainsys.space.tensor import EMBED

GAIN = 0.05  # of the step; less is not worth a change, and keeps the decision from flapping
_GAIN_OF = {"balance": GAIN, "drain": 3 * GAIN}  # of other layouts the simulation leaves out the messages
Slow = Mapping[tuple[int, int], float]  # (stage, replica) -> factor; others have 1


@dataclasses.dataclass(frozen=True)
class Remedy:
    """A decision.

    Attributes:
        kind: ``none``, ``balance`` or ``drain``.
        parallel: to go on with.
        now, then: predicted steps, relative to one with nobody slow on the same layout.
    """

    kind: str
    parallel: ParallelConfig
    now: float = 1.0
    then: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}: a step of {self.now:.2f} times its usual length becomes {self.then:.2f}"


def remedy(
    config: RunConfig,
    parallel: ParallelConfig,
    base: ParallelConfig,
    slow: Slow,
    without: ParallelConfig | None,
    mode: str,
) -> Remedy:
    """Less for the slow ones where that helps; else, and once that is done, on without them where that helps much.

    Args:
        parallel, base: as it is now, and as it was before anybody was slow.
        slow: in it.
        without: the layout that would follow if the slow ranks left; None: there is none.
        mode: ``tell``, ``balance`` or ``drain``, as ``elastic.stragglers``.
    """
    if mode == "tell":
        return Remedy("none", parallel)
    usual = step_of(config, base, {})
    now = step_of(config, parallel, slow) / usual
    options = []
    if mode == "balance":
        even = balanced(config, base, slow)
        then = step_of(config, even, slow) / usual
        if even != parallel:
            options.append(Remedy("balance", even, now, then))
    if without is not None and slow:
        options.append(Remedy("drain", without, now, step_of(config, without, {}) / usual))
    helps = (option for option in options if option.then < now * (1 - _GAIN_OF[option.kind]))
    return next(helps, Remedy("none", parallel, now, now))


def balanced(config: RunConfig, parallel: ParallelConfig, slow: Slow) -> ParallelConfig:
    """`parallel` with the shares or the layers under which its step is shortest; without slow ranks even shares."""
    best = plain(parallel)
    if not slow:
        return best
    least = step_of(config, best, slow)
    for option in _options(config, best, slow):
        seconds = step_of(config, option, slow)
        if seconds < least * (1 - GAIN / 2):
            best, least = option, seconds
    return best


def plain(parallel: ParallelConfig) -> ParallelConfig:
    """With even shares."""
    return dataclasses.replace(parallel, replica_shares=())


def step_of(config: RunConfig, parallel: ParallelConfig, slow: Slow) -> float:
    """A step of a layout whose lanes are slow by these factors, in any unit that layouts of one tp and cp share.

    Infinite where the schedule does not suit it, or it does not fit.
    """
    own = dataclasses.replace(config, parallel=parallel)
    stages = Stages.of(config.model, parallel)
    try:
        schedule = schedule_of(own, stages)
    except ValueError:
        return float("inf")
    costs = relative_costs(
        config.model, stages, config.batch.seq_len, parallel.recompute == "full", parallel.vocabulary
    )
    factors = [1.0] * schedule.num_lanes
    for (stage, replica), lane in schedule.placement.items():
        factors[lane] = slow.get((stages.host(stage), replica), 1.0)
    costs = dataclasses.replace(costs, slow=factors) if slow else costs
    return simulate(schedule, costs).step_s / stages.count


def _options(config: RunConfig, parallel: ParallelConfig, slow: Slow) -> list[ParallelConfig]:
    stages = Stages.of(config.model, parallel)
    options = []
    if parallel.ep == 1:  # the teams of an expert group run in lockstep
        shares = deal(config.batch.global_size // config.batch.microbatch_size, stages.replicas, slow)
        options.append(dataclasses.replace(parallel, replica_shares=shares))
    if parallel.pp > 1 and parallel.vp == 1 and parallel.vocabulary == "ends":
        factors = [max(slow.get((s, r), 1.0) for r in range(n)) for s, n in enumerate(stages.replicas)]
        layers = spread(config, stages, factors)
        fewer = dataclasses.replace(parallel, stage_layers=layers)
        limit_gib = config.cluster.device.memory_gib
        if worst_memory(dataclasses.replace(config, parallel=fewer), Stages.of(config.model, fewer)).total <= limit_gib:
            options.append(fewer)
    return options


def deal(microbatches: int, replicas: Sequence[int], slow: Slow) -> tuple[int, ...]:
    """Microbatches of every replica, stage by stage, such that the last of a stage's replicas ends first."""
    shares: list[int] = []
    for stage, count in enumerate(replicas):
        factors = [slow.get((stage, replica), 1.0) for replica in range(count)]
        own = [1] * count
        for _ in range(microbatches - count):
            own[min(range(count), key=lambda r: (factors[r] * (own[r] + 1), r))] += 1
        shares += own
    return tuple(shares)


def spread(config: RunConfig, stages: Stages, factors: Sequence[float]) -> tuple[int, ...]:
    """Layers of each stage such that the busiest replica has least to do, and of equals the fewest move."""
    seq_len, tp, last = config.batch.seq_len, stages.tp, stages.count - 1
    model = config.model
    layer = forward_flops(model, 0, seq_len, tp)
    first, head = (forward_flops(model, block, seq_len, tp) for block in (EMBED, model.num_layers))
    pace = [factor / replicas for factor, replicas in zip(factors, stages.replicas, strict=True)]
    besides = [(first * (s == 0) + head * (s == last)) * pace[s] for s in range(stages.count)]
    return rebalance([[layer * own] * model.num_layers for own in pace], stages.layers, besides)
