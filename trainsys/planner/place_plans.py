"""Places for the best plans on links that differ: annealed by a simple cost, then improved and judged by `predict`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import permutations
from math import inf
from time import perf_counter

import numpy as np

from trainsys.comm.topology import Topology
from trainsys.config import ParallelConfig, RunConfig
from trainsys.planner.communication import boundary_bytes
from trainsys.planner.device import Rate
from trainsys.planner.placement import Array, Traffic, place
from trainsys.planner.plan import Plan
from trainsys.planner.precision import Precision
from trainsys.planner.predict import predict
from trainsys.planner.ranking import with_layout
from trainsys.planner.sizes import stage_sizes
from trainsys.planner.stages import Stages, notation
from trainsys.space.build import ORDER, axis_order

_GRIDS = 6  # of teams, each placed by its fastest layout
_EACH = 4  # layouts of a grid that are judged again
_FEW = 4  # ranks: all orders are tried
_SAME = 1e-9  # relative: rounding
_GAIN = 1e-3  # relative: less is not worth an unusual numbering of ranks

Places = tuple[int, ...]


def place_plans(config: RunConfig, plans: Sequence[Plan], measured: Rate, seconds: float = 2.0) -> list[Plan]:
    """The same plans, the best of them with their ranks where the links suit them: none is slower than before.

    Plans with one grid of teams are placed alike. With another ``parallel.order`` than the usual one nothing is
    placed, as the planner counts in the usual one.

    Args:
        plans: fastest first.
        seconds: spent in all, about.
    """
    if axis_order(config.parallel) != ORDER:
        return list(plans)
    grids: dict[tuple[int, ...], list[int]] = {}
    for i, plan in enumerate(plans):
        p = plan.parallel
        grids.setdefault((p.dp, p.cp, p.tp, p.pp, plan.microbatch_size, *p.devices), []).append(i)
    found = list(plans)
    chosen = list(grids.values())[:_GRIDS]
    for members in chosen:
        config = with_layout(config, config.parallel, plans[members[0]].microbatch_size)
        devices = _devices(config, plans[members[0]].parallel, measured, seconds / len(chosen))
        for i in members[:_EACH] if devices else ():
            parallel = dataclasses.replace(plans[i].parallel, devices=devices)
            placed = predict(config, parallel, measured)
            fits = placed.peak_gib <= placed.limit_gib  # where devices differ, places change that
            if fits and placed.step_s < plans[i].step_s * (1 - _GAIN):
                bound = plans[i].bound_by if plans[i].bound_by == "memory" else placed.bound_by
                found[i] = dataclasses.replace(placed, layout=notation(parallel), bound_by=bound)
    return found


def _devices(config: RunConfig, parallel: ParallelConfig, measured: Rate, seconds: float) -> Places:
    """The rank at each place of `parallel`'s mesh; empty where none better than its own order was found."""
    begin = perf_counter()
    plain = parallel.devices or tuple(range(Stages.of(config.model, parallel).num_ranks))

    def step_s(devices: Places) -> float:
        plan = predict(config, dataclasses.replace(parallel, devices=devices), measured)
        return plan.step_s if plan.peak_gib <= plan.limit_gib else inf

    best, best_s = plain, step_s(plain)
    few = len(plain) <= _FEW
    for devices in permutations(plain) if few else _annealed(config, parallel, seconds / 2):
        if (tried_s := step_s(devices)) < best_s * (1 - _SAME):
            best, best_s = devices, tried_s
    random = np.random.default_rng(0)
    while not few and perf_counter() - begin < seconds:  # two ranks change places, as the planner judges it
        a, b = random.choice(len(plain), 2, replace=False)
        tried = list(best)
        tried[a], tried[b] = best[b], best[a]
        if (tried_s := step_s(tuple(tried))) < best_s * (1 - _SAME):
            best, best_s = tuple(tried), tried_s
    return () if best == plain else best


def _annealed(config: RunConfig, parallel: ParallelConfig, seconds: float) -> Iterator[Places]:
    """Whole replicas of stages in the slots that `place` finds for them."""
    stages = Stages.of(config.model, parallel)
    unit = stages.tp * stages.cp
    traffic = _traffic(dataclasses.replace(config, parallel=parallel), stages)
    if traffic.teams < 2 or not stages.even:
        return
    found = place(traffic, _between_slots(Topology.from_config(config.cluster), unit), seconds)
    places = [0] * stages.num_ranks
    for stage, row in enumerate(found.slots):
        for replica, slot in enumerate(row):
            first = stages.team(stage, replica) * stages.tp
            places[first : first + unit] = range(slot * unit, (slot + 1) * unit)
    yield tuple(places)


def _traffic(config: RunConfig, stages: Stages) -> Traffic:
    """What `place` needs to know; gradients as the all-reduce that is as long as what their ZeRO stage sends."""
    sizes = stage_sizes(config.model, stages, config.parallel.zero, config.elastic.tolerate)
    microbatches, dp = config.batch.global_size // config.batch.microbatch_size, stages.replicas[0]
    scatters = -(-microbatches // dp) if config.parallel.zero >= 2 else 1
    volumes = {2: (scatters + 1) / 2, 3: 3 * scatters / 2}.get(config.parallel.zero, 1.0)
    return Traffic(
        pp=stages.count,
        dp=dp,
        message_bytes=boundary_bytes(config) * stages.vp,
        waves=max(1, -(-microbatches // dp) // stages.count),
        gradient_bytes=max(sizes.held) * Precision.of(config.train.dtype).gradient * volumes,
    )


def _between_slots(topology: Topology, unit: int) -> Array:
    """GB/s between runs of `unit` ranks: that of the slowest pair of counterparts."""
    slots = topology.num_ranks // unit
    gbps = np.zeros((slots, slots))
    for a in range(slots):
        for b in range(slots):
            if a != b:
                gbps[a, b] = min(topology.link(a * unit + k, b * unit + k).gbps for k in range(unit))
    return gbps
