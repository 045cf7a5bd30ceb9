"""The best next layout after ranks left or joined: step time from then on, plus the cost of getting there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from math import inf

from trainsys.comm.topology import Link, Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner import least
from trainsys.planner.best_first import ascending
from trainsys.planner.candidates import candidates, reachable
from trainsys.planner.device import Rate, rate
from trainsys.planner.moves import moved_bytes
from trainsys.planner.predict import predict, worst_memory
from trainsys.planner.stages import Stages, notation

HORIZON_STEPS = 100  # steps over which a move must pay for itself, where no rate of failures says how long it lasts
MARGIN = 0.1  # a predicted gain below this is within the model's error: not worth new stage boundaries
IDLE = 0.02  # nor this much ranks without work, whose copies of the state would be safer


def successor(
    config: RunConfig, teams: int, current: ParallelConfig, alive: Sequence[int], measured: Rate | None = None
) -> ParallelConfig:
    """The layout to continue with on `teams` whole tp teams, of which `alive[s]` still hold stage s.

    Keeps tp, ZeRO stage, schedule, reduction, and vp where there are layers enough, of `current`; of the configured cp
    as much as the teams and their memory allow, and of the configured ep what the replicas do. Considers keeping the
    stages' layers with teams added or moved, going home to ``config.parallel``, and every other number of stages with
    the layers split evenly or by their replicas, which must be better by `MARGIN`. The cheapest wins until the next
    failure or repair that ``cluster.node_mtbf_hours`` lets expect, or without one over `HORIZON_STEPS` steps: their
    predicted time, plus the bytes that the busiest rank must receive over the slowest link. Recomputes activations only
    when nothing fits otherwise. Teams stay idle where that is better by `IDLE`. Ranks wait for the answer: of many
    teams or microbatches (`planner.wide`) steps are predicted from a part of them.

    Args:
        teams: whole teams there are, holding a stage or fresh.
        alive: per stage of `current`, teams that are still whole; ``sum(alive) <= teams``. Under cp all teams of a
            stage hold the same, so that those of different replicas can make a new one.
        measured: the rate of a rank; by default from ``config.cluster``.

    Raises:
        ValueError: when too few ranks are left, or the model does not fit into their memory.
    """
    before = Stages.of(config.model, current)
    assert len(alive) == before.count, (alive, before)
    _check_enough(config, teams, current.tp)
    ranks = teams * current.tp
    measured = measured or rate(config.cluster, ranks)
    link = Topology.from_config(config.cluster, ranks).slowest(range(ranks))
    home = Stages.of(config.model, config.parallel)
    settled = (before.runs, home.runs) if reachable(home, before, teams) else (before.runs,)

    cost = _Cost(config, before, alive, teams, settled, measured, link, expected_stay_s(config, ranks))
    tried: list[ParallelConfig] = []
    for cp in (d for d in range(min(home.cp, teams), 0, -1) if home.cp % d == 0):
        options = candidates(config, current, home, cp, teams, alive)
        for recompute in dict.fromkeys((current.recompute, "full")):
            tried += (again := [dataclasses.replace(p, recompute=recompute) for p in options])
            # of equals the layout nearest to the current one
            for parallel in ascending(again, (cost.of_work, cost.at_least, cost.exact)):
                return parallel
    raise ValueError(_too_big(config, tried, ranks))


@dataclasses.dataclass(frozen=True)
class _Cost:
    """Seconds of one step of a layout, with its share of the move; more exact, and dearer to know, from top to bottom.

    Attributes:
        teams: those that there are.
        settled: layers of layouts that need no `MARGIN`.
        link: the slowest.
        stay_s: until the next change; None: `HORIZON_STEPS` steps.
    """

    config: RunConfig
    before: Stages
    alive: Sequence[int]
    teams: int
    settled: tuple[tuple[int, ...], ...]
    measured: Rate
    link: Link | None
    stay_s: float | None

    def of_work(self, parallel: ParallelConfig) -> float:
        config, stages = self._with(parallel)
        return self._whole(stages, least.busy_s(config, self.measured), 0.0)

    def at_least(self, parallel: ParallelConfig) -> float:
        """Infinite for what cannot fit."""
        config, stages = self._with(parallel)
        if least.memory_gib(config, stages) > config.cluster.device.memory_gib:
            return inf
        return self._whole(stages, least.step_s(config, self.measured), self._moved(stages, parallel))

    def exact(self, parallel: ParallelConfig) -> float:
        """Infinite for what does not fit."""
        config, stages = self._with(parallel)
        if worst_memory(config, stages).total > config.cluster.device.memory_gib:
            return inf
        step_s = predict(config, parallel, self.measured, whole=False).step_s
        return self._whole(stages, step_s, self._moved(stages, parallel))

    def _with(self, parallel: ParallelConfig) -> tuple[RunConfig, Stages]:
        config = dataclasses.replace(self.config, parallel=parallel)
        return config, Stages.of(config.model, parallel)

    def _moved(self, stages: Stages, parallel: ParallelConfig) -> float:
        return moved_bytes(self.config, self.before, self.alive, stages, parallel.zero)

    def _whole(self, stages: Stages, step_s: float, moved: float) -> float:
        steps = self.stay_s / step_s if self.stay_s else HORIZON_STEPS
        move_s = self.link.transfer_s(moved) / steps if self.link else 0.0
        idle = stages.num_teams < self.teams
        return step_s * (1 + MARGIN * (stages.runs not in self.settled) + IDLE * idle) + move_s


def expected_stay_s(config: RunConfig, ranks: int) -> float | None:
    """Mean seconds until a node fails or one comes back, both at random; None where nodes are not said to fail."""
    cluster = config.cluster
    if not cluster.node_mtbf_hours:
        return None
    nodes = -(-ranks // cluster.ranks_per_node)
    per_hour = nodes / cluster.node_mtbf_hours + max(0, cluster.nodes - nodes) / cluster.node_repair_hours
    return 3600 / per_hour


def _check_enough(config: RunConfig, teams: int, tp: int) -> None:
    needed = max(config.elastic.min_ranks, tp)
    if teams * tp < needed:
        whole = f"{teams * tp} in whole teams of parallel.tp={tp}" if tp > 1 else f"{teams} alive"
        knob = "lower elastic.min_ranks" if needed > tp else "restart from a checkpoint with a smaller parallel.tp"
        raise ValueError(f"needs ≥ {needed} ranks, {whole}; {knob}")


def _too_big(config: RunConfig, options: list[ParallelConfig], ranks: int) -> str:

    def of(parallel: ParallelConfig) -> tuple[RunConfig, Stages]:
        return dataclasses.replace(config, parallel=parallel), Stages.of(config.model, parallel)

    measures = (lambda p: least.memory_gib(*of(p)), lambda p: worst_memory(*of(p)).total)
    nearest = next(ascending(options, measures))
    limit, needs = config.cluster.device.memory_gib, worst_memory(*of(nearest)).total
    saves = nearest.zero < 2 and nearest.reduction != "fast"
    return (
        f"no layout fits on the {ranks} rank{'s'[: ranks != 1]} left: nearest is {notation(nearest)}, which needs "
        f"{needs:.3g} GiB per rank and misses cluster.device.memory_gib={limit:g} by {needs - limit:.3g} GiB; "
        f"add ranks{' or set parallel.reduction=fast' if saves else ''}"
    )
