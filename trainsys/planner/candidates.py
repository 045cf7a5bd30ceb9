"""The layouts that may follow a change of membership: those near the present one, and evenly split ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from trainsys.config import ParallelConfig, RunConfig
from trainsys.models.geometry import forward_flops, split_layers
from trainsys.planner.experts import largest_ep
from trainsys.planner.in_flight import FORMS
from trainsys.planner.stages import Stages
from trainsys.planner.step_schedule import schedule_of
from trainsys.space.runs import host_of

Grid = tuple[tuple[int, ...], tuple[int, ...]]  # layers of each run (without vp: stage), replicas of each stage


def reachable(home: Stages, before: Stages, teams: int) -> bool:
    """Whether `teams` are enough for the configured layout."""
    return home.num_teams <= teams and home.tp == before.tp


def candidates(
    config: RunConfig, current: ParallelConfig, home: Stages, cp: int, teams: int, alive: Sequence[int]
) -> list[ParallelConfig]:
    """The layouts with replicas of `cp` teams, the ones nearest to the current one first."""
    before = Stages.of(config.model, current)
    near = [(home.runs, home.replicas)] if home.cp == cp and reachable(home, before, teams) else []
    grids = _grids(config, before, teams // cp, tuple(count // cp for count in alive))
    return [_as_config(config, current, cp, *grid) for grid in dict.fromkeys([*near, *grids])]


def _grids(config: RunConfig, before: Stages, teams: int, alive: tuple[int, ...]) -> Iterator[Grid]:
    """Candidates, the ones nearest to the current layout first; `teams` and `alive` in units of a replica."""
    most = config.batch.global_size // config.batch.microbatch_size
    num_layers = config.model.num_layers
    if before.count <= teams:
        load = _load(config, before.runs, before.count, before.folded)
        for replicas in _grown(alive, teams, most, load):
            yield before.runs, replicas
    most_stages = num_layers if config.model.vocab_parts == 1 else min(num_layers, config.model.vocab_parts)
    for count in range(1, min(teams, most_stages) + 1):
        vp = before.vp if count * before.vp <= num_layers else 1
        runs = split_layers(num_layers, count * vp)
        even = min(teams // count, most)
        yield runs, (even,) * count
        *_, full = _grown((1,) * count, teams, most, _load(config, runs, count, before.folded))
        yield runs, full
        hosts = [host_of(run, count, before.folded) for run in range(count * vp)]
        yield _by_replicas(num_layers, tuple(full[host] for host in hosts)), full
        lent = tuple(min(most, teams // count + (stage < teams % count)) for stage in range(count))
        yield _by_replicas(num_layers, tuple(lent[host] for host in hosts)), lent


def _load(config: RunConfig, runs: tuple[int, ...], count: int, folded: bool) -> list[float]:
    """Forward FLOPs per token of each of `count` stages."""
    stages, seq_len = Stages(runs, (1,) * count, 1, folded=folded), config.batch.seq_len
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
        replica_shares=(),  # of other replicas
        devices=(),  # who lives stays where it is, whatever the first layout's places were
    )
    after = _runnable(config, after)
    return dataclasses.replace(after, ep=largest_ep(config, after))


def _runnable(config: RunConfig, parallel: ParallelConfig) -> ParallelConfig:
    """With another schedule where its own does not suit so many stages or microbatches."""
    if parallel.schedule in FORMS and not parallel.activations:
        return parallel
    try:
        schedule_of(dataclasses.replace(config, parallel=parallel), Stages.of(config.model, parallel))
    except ValueError:
        plain = "interleaved" if parallel.vp > 1 else "1f1b"
        return dataclasses.replace(parallel, schedule=plain, placement="auto", activations=0.0)
    return parallel
