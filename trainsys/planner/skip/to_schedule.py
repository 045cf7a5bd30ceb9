"""A plan as routes and a schedule, which verifier, simulator, timeline and executor read like any other.

Stage 0 is visited twice, so its head is a stage of its own here, the last one, on the same lanes. A lane is a node;
lanes follow the stages. All receives are posted at the start: a transfer begins when its sender is ready, which is what
the plan's score assumes.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.planner.skip.search import SkipPlan
from trainsys.planner.skip.setting import Setting, Stages
from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.costs import Costs
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule
from trainsys.schedule.simulate import Event


def to_schedule(plan: SkipPlan, per_node: bool = False) -> Schedule:
    """The schedule of a plan, with its sends and receives.

    Args:
        per_node: every node is a stage of its own, so that costs, which are by stage, can tell nodes apart.

    Raises:
        ValueError: a stage that no microbatch visits.
    """
    groups = _groups(plan.setting, plan.stages, per_node)
    stage_of = {node: stage for stage, nodes in enumerate(groups) for node in nodes}
    heads = {node: stage for stage, nodes in _heads(groups, plan.stages) for node in nodes}
    visited = [[*(stage_of[node] for node in path), heads[path[0]]] for path in plan.paths]
    count = len(groups) + len(set(heads.values()))
    used = [list[int]() for _ in range(count)]  # the nodes behind a stage's replicas 0, 1, …
    table = [[-1] * len(plan.paths) for _ in range(count)]
    for mb, (path, stages) in enumerate(zip(plan.paths, visited, strict=True)):
        for node, stage in zip((*path, path[0]), stages, strict=True):
            if node not in used[stage]:
                used[stage].append(node)
            table[stage][mb] = used[stage].index(node)
    if not per_node and not all(used):
        raise ValueError(f"no microbatch visits stage {used.index([])}; lower stage_limit={plan.setting.capacity}")
    lane_of = {node: lane for lane, node in enumerate(_lanes(plan))}
    placement = {(stage, r): lane_of[node] for stage, nodes in enumerate(used) for r, node in enumerate(nodes)}
    routes = Routes(tuple(map(tuple, table)), tuple(map(tuple, visited)))
    orders = [plan.orders[node] for node in _lanes(plan)]
    lanes = tuple(tuple(_action(visited[mb], mb, place) for mb, place in order) for order in orders)
    schedule = Schedule("skip", routes, lanes, placement)
    return insert_comms(schedule, prefetch=max(map(len, lanes)))


def costs_of(plan: SkipPlan, per_node: bool = False) -> Costs:
    """What the actions of `to_schedule` take.

    Raises:
        ValueError: nodes of one stage that are not equally fast, unless `per_node`.
    """
    setting = plan.setting
    groups = _groups(setting, plan.stages, per_node)
    for stage, members in enumerate(groups):
        each = [setting.compute_s[node] for node in members]
        if min(each) < max(each):
            raise ValueError(
                f"nodes of stage {stage} take {min(each):g} to {max(each):g} s per forward and costs are by stage; "
                "ask with per_node=True, or give them equal compute_s"
            )
    first = set(plan.stages[0])
    f_s = [setting.compute_s[nodes[0]] * (setting.first if nodes[0] in first else 1.0) for nodes in groups]
    f_s += [setting.compute_s[nodes[0]] * setting.head for _, nodes in _heads(groups, plan.stages)]
    nodes = _lanes(plan)
    return Costs(f_s, [setting.backward * f for f in f_s], send_s=lambda a, b: setting.send_s[nodes[a]][nodes[b]])


def events_of(plan: SkipPlan) -> list[Event]:
    """The plan's work as `schedule.timeline` draws it: lanes by stage, the head as one stage more."""
    stage_of = {node: stage for stage, nodes in enumerate(plan.stages) for node in nodes}
    lane_of = {node: lane for lane, node in enumerate(_lanes(plan))}
    visited = [[*(stage_of[node] for node in path), len(plan.stages)] for path in plan.paths]
    return [
        Event(lane_of[w.node], _action(visited[w.microbatch], w.microbatch, w.place), w.start_s, w.end_s)
        for w in plan.work
    ]


def _lanes(plan: SkipPlan) -> list[int]:
    """The node of each lane."""
    return [node for nodes in plan.stages for node in nodes]


def _groups(setting: Setting, stages: Stages, per_node: bool) -> Sequence[tuple[int, ...]]:
    """Nodes by stage of the schedule, heads left out."""
    return [(node,) for node in range(setting.num_nodes)] if per_node else stages


def _heads(groups: Sequence[tuple[int, ...]], stages: Stages) -> list[tuple[int, tuple[int, ...]]]:
    """(stage of the schedule, nodes) of the heads, which follow the groups."""
    homes = [nodes for nodes in groups if nodes[0] in stages[0]]
    return list(enumerate(homes, start=len(groups)))


def _action(visited: Sequence[int], mb: int, place: int) -> Action:
    """The work at `place` of the microbatch's chain (dispatch.chain)."""
    last = len(visited) - 1
    return Action(visited[place], Kind.F, mb) if place <= last else Action(visited[2 * last + 1 - place], Kind.B, mb)
