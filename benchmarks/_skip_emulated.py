"""A planned partial pipeline on the real executor: nodes are ranks whose stages sleep, links are messages that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks._clock import median_s, span
from benchmarks._skip_swarm import replicas, swarm
from trainsys.comm.communicator import Communicator
from trainsys.parallel.executor import Executor
from trainsys.parallel.timed_links import TimedLinks
from trainsys.planner.skip.places import choose_places
from trainsys.planner.skip.search import search
from trainsys.planner.skip.setting import without_skips
from trainsys.planner.skip.to_schedule import costs_of, to_schedule
from trainsys.schedule.costs import Costs
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import simulate
from trainsys.testing import RankPool
from trainsys.testing.emulated import EmulatedStage

REPEAT = 3


def emulate(
    nodes: int, stages: int, visits: int, per_home: int, limit: int, seed: int, evaluations: int
) -> list[dict[str, Any]]:
    """Seconds of a step as simulated and as measured, of all stages and of the planned skipping."""
    sizes, rows = replicas(nodes, stages), []
    setting = swarm(seed, sizes, per_home * sizes[0], visits, limit)
    pool = RankPool()
    for name, own in (("all stages", without_skips(setting)), ("skipping", setting)):
        plan = search(own, choose_places(own, evaluations // 2, seed=seed), evaluations, seed=seed)
        schedule, costs = to_schedule(plan, per_node=True), costs_of(plan, per_node=True)
        spans = pool.run(body, nodes, schedule, _plain(costs, schedule.num_lanes), timeout_s=300)
        simulated = simulate(schedule, costs).step_s
        measured = median_s(spans)
        rows.append({"plan": name, "simulated_s": simulated, "measured_s": measured, "off": measured / simulated - 1})
    pool.close()
    return rows


def _plain(costs: Costs, lanes: int) -> tuple[list[float], list[float], list[list[float]]]:
    """Costs that can be sent to ranks: F and B by stage, messages by lane and lane."""
    send_s = costs.send_s
    assert callable(send_s)
    return (
        list(costs.f_s),
        list(costs.b_s),
        [[send_s(a, b) if a != b else 0.0 for b in range(lanes)] for a in range(lanes)],
    )


def body(
    rank: int,
    world_size: int,
    store: Any,
    schedule: Schedule,
    costs: tuple[list[float], list[float], list[list[float]]],
) -> list[Any]:
    """One node: start and end of each repetition on the common clock."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group, (f_s, b_s, send_s) = comm.group(members), costs
    ends = {path[0] for path in schedule.routes.paths}, {path[-1] for path in schedule.routes.paths}
    hosted = sorted({stage for (stage, _), lane in schedule.placement.items() if lane == rank})
    runners: Mapping[int, EmulatedStage] = {
        s: EmulatedStage(f_s[s], b_s[s], s in ends[0], s in ends[1]) for s in hosted
    }
    links: Any = TimedLinks(group, lambda peer: send_s[rank][peer], lambda peer: send_s[peer][rank])
    executor = Executor(schedule, rank, runners, links, dict(enumerate(members)))
    spans = [span(group, executor.run) for _ in range(REPEAT + 1)]  # the first connects and warms up
    comm.close()
    return spans[1:]
