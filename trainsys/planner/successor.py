"""The best next layout after ranks left or joined: step time from then on, plus the cost of getting there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import forward_flops, split_layers
from trainsys.planner.device import Rate, rate
from trainsys.planner.experts import largest_ep
from trainsys.planner.moves import moved_bytes
from trainsys.planner.predict import predict, worst_memory
from trainsys.planner.stages import Stages, notation

HORIZON_STEPS = 100  # steps over which a move must pay for itself, where no rate of failures says how long it lasts
MARGIN = 0.1  # a predicted gain below this is within the model's error: not worth new stage boundaries

Grid = tuple[tuple[int, ...], tuple[int, ...]]  # layers of each run (without vp: stage), replicas of each stage


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
    when nothing fits otherwise. Some teams may stay idle.

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
    settled = (before.runs, home.runs) if _reachable(home, before, teams) else (before.runs,)

    stay_s = expected_stay_s(config, ranks)

    def cost_s(parallel: ParallelConfig) -> float:
        """Of one step, with its share of the move."""
        after = Stages.of(config.model, parallel)
        moved = moved_bytes(config, before, alive, after, parallel.zero)
        step_s = predict(config, parallel, measured).step_s
        steps = stay_s / step_s if stay_s else HORIZON_STEPS
        return step_s * (1 if after.runs in settled else 1 + MARGIN) + (link.transfer_s(moved) / steps if link else 0.0)

    tried: list[ParallelConfig] = []
    for cp in (d for d in range(min(home.cp, teams), 0, -1) if home.cp % d == 0):
        options = _options(config, current, home, cp, teams, alive)
        for recompute in dict.fromkeys((current.recompute, "full")):
            tried += (again := [dataclasses.replace(p, recompute=recompute) for p in options])
            fitting = [p for p in again if _memory(config, p) <= config.cluster.device.memory_gib]
            if fitting:
                return min(fitting, key=cost_s)  # the first of equals: the layout nearest to the current one
    raise ValueError(_too_big(config, tried, ranks))


def expected_stay_s(config: RunConfig, ranks: int) -> float | None:
    """Mean seconds until a node fails or one comes back, both at random; None where nodes are not said to fail."""
    cluster = config.cluster
    if not cluster.node_mtbf_hours:
        return None
    nodes = -(-ranks // cluster.ranks_per_node)
    per_hour = nodes / cluster.node_mtbf_hours + max(0, cluster.nodes - nodes) / cluster.node_repair_hours
    return 3600 / per_hour


def _reachable(home: Stages, before: Stages, teams: int) -> bool:
    """Whether `teams` are enough for the configured layout."""
    return home.num_teams <= teams and home.tp == before.tp


def _options(
    config: RunConfig, current: ParallelConfig, home: Stages, cp: int, teams: int, alive: Sequence[int]
) -> list[ParallelConfig]:
    """The layouts with replicas of `cp` teams, the ones nearest to the current one first."""
    before = Stages.of(config.model, current)
    near = [(home.runs, home.replicas)] if home.cp == cp and _reachable(home, before, teams) else []
    grids = _grids(config, before, teams // cp, tuple(count // cp for count in alive))
    return [_as_config(config, current, cp, *grid) for grid in dict.fromkeys([*near, *grids])]


def _check_enough(config: RunConfig, teams: int, tp: int) -> None:
    needed = max(config.elastic.min_ranks, tp)
    if teams * tp < needed:
        whole = f"{teams * tp} in whole teams of parallel.tp={tp}" if tp > 1 else f"{teams} alive"
        knob = "lower elastic.min_ranks" if needed > tp else "restart from a checkpoint with a smaller parallel.tp"
        raise ValueError(f"needs ≥ {needed} ranks, {whole}; {knob}")


def _memory(config: RunConfig, parallel: ParallelConfig) -> float:
    return worst_memory(dataclasses.replace(config, parallel=parallel), Stages.of(config.model, parallel)).total


def _too_big(config: RunConfig, options: list[ParallelConfig], ranks: int) -> str:
    nearest = min(options, key=lambda parallel: _memory(config, parallel))
    limit, needs = config.cluster.device.memory_gib, _memory(config, nearest)
    saves = nearest.zero < 2 and nearest.reduction != "fast"
    return (
        f"no layout fits on the {ranks} rank{'s'[: ranks != 1]} left: nearest is {notation(nearest)}, which needs "
        f"{needs:.3g} GiB per rank and misses cluster.device.memory_gib={limit:g} by {needs - limit:.3g} GiB; "
        f"add ranks{' or set parallel.reduction=fast' if saves else ''}"
    )


def _grids(config: RunConfig, before: Stages, teams: int, alive: tuple[int, ...]) -> Iterator[Grid]:
    """Candidates, the ones nearest to the current layout first; `teams` and `alive` in units of a replica."""
    most = config.batch.global_size // config.batch.microbatch_size
    num_layers = config.model.num_layers
    if before.count <= teams:
        load = _load(config, before.runs, before.count)
        for replicas in _grown(alive, teams, most, load):
            yield before.runs, replicas
    for count in range(1, min(teams, num_layers) + 1):
        vp = before.vp if count * before.vp <= num_layers else 1
        runs = split_layers(num_layers, count * vp)
        even = min(teams // count, most)
        yield runs, (even,) * count
        *_, full = _grown((1,) * count, teams, most, _load(config, runs, count))
        yield runs, full
        yield _by_replicas(num_layers, full * vp), full
        lent = tuple(min(most, teams // count + (stage < teams % count)) for stage in range(count))
        yield _by_replicas(num_layers, lent * vp), lent


def _load(config: RunConfig, runs: tuple[int, ...], count: int) -> list[float]:
    """Forward FLOPs per token of each of `count` stages."""
    stages, seq_len = Stages(runs, (1,) * count, 1), config.batch.seq_len
    return [sum(forward_flops(config.model, b, seq_len) for b in stages.blocks(s)) for s in range(count)]


def _grown(start: tuple[int, ...], teams: int, most: int, load: list[float]) -> Iterator[tuple[int, ...]]:
    """`start`, and then each step of giving one more team to the stage that is slowest, up to `teams` in all.

    A stage that lost its last replica comes first; without a spare team the one with most to spare gives one up.
    """
    replicas = [min(count, most) for count in start]
    while 0 in replicas:
        if sum(replicas) == teams:
            giver = min((s for s, r in enumerate(replicas) if r > 1), key=lambda s: load[s] / replicas[s])
            replicas[giver] -= 1
        replicas[replicas.index(0)] = 1
    yield tuple(replicas)
    while sum(replicas) < teams:
        open_stages = [s for s, r in enumerate(replicas) if r < most]
        if not open_stages:
            return
        replicas[max(open_stages, key=lambda s: load[s] / replicas[s])] += 1
        yield tuple(replicas)


def _by_replicas(num_layers: int, replicas: tuple[int, ...]) -> tuple[int, ...]:
    """Layers in proportion to each stage's replicas, at least one each: equal work for every team."""
    layers = [1] * len(replicas)
    for _ in range(num_layers - len(replicas)):
        stage = min(range(len(replicas)), key=lambda s: (layers[s] + 1) / replicas[s])
        layers[stage] += 1
    return tuple(layers)


def _as_config(
    config: RunConfig, current: ParallelConfig, cp: int, runs: tuple[int, ...], replicas: tuple[int, ...]
) -> ParallelConfig:
    """A grid as a config: the ragged fields only where dp and pp do not say it already."""
    vp = len(runs) // len(replicas)
    named = (current, config.parallel) if vp > 1 else (current,)
    schedule = next((p.schedule for p in named if p.vp == vp or p.schedule == "gpipe"), "1f1b")
    microbatches = config.batch.global_size // config.batch.microbatch_size
    even = len(set(replicas)) == 1 and microbatches % replicas[0] == 0
    after = dataclasses.replace(
        current,
        dp=max(replicas),
        cp=cp,
        pp=len(replicas),
        vp=vp,
        schedule=schedule,
        stage_layers=() if runs == split_layers(config.model.num_layers, len(runs)) else runs,
        stage_replicas=() if even else replicas,
        devices=(),  # who lives stays where it is, whatever the first layout's places were
    )
    return dataclasses.replace(after, ep=largest_ep(config, after))
