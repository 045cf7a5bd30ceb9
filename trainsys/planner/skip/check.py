"""Whether a plan keeps to what was given: told from the plan alone, by none of the code that searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate

from trainsys.planner.skip.setting import Paths, Setting, Stages

Orders = tuple[tuple[tuple[int, int], ...], ...]  # by node: (microbatch, place in its chain), see dispatch.Work


def check_paths(setting: Setting, stages: Stages, paths: Paths, orders: Orders) -> None:
    """Accept a plan that breaks no rule and no limit, and whose nodes, each in its order, come to the end.

    Args:
        stages: nodes by stage.
        orders: what each node does, in order; empty for an idle node.

    Raises:
        ValueError: naming the first thing that is wrong.
    """
    for problem in _problems(setting, stages, paths, orders):
        raise ValueError(problem)


def _problems(setting: Setting, stages: Stages, paths: Paths, orders: Orders) -> Iterator[str]:
    yield from _nodes(setting, stages)
    stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}
    if len(paths) != setting.microbatches:
        yield f"{len(paths)} paths for {setting.microbatches} microbatches"
    visited = Counter[int]()
    for mb, path in enumerate(paths):
        home = setting.home(stages, mb)
        if len(path) != setting.visits or path[0] != home:
            yield f"microbatch {mb}: path {path} must begin at node {home} and have {setting.visits} nodes"
        visits = [stage_of[node] for node in path]
        yield from (f"microbatch {mb}: {wrong}" for wrong in _rules(setting, visits))
        visited.update(visits)
    for stage, most in enumerate(setting.capacity):
        if visited[stage] > most:
            yield f"stage {stage} is visited by {visited[stage]} microbatches; its limit is {most}"
    yield from _memory(setting, paths, orders)
    yield from _ends(paths, orders)


def _nodes(setting: Setting, stages: Stages) -> Iterator[str]:
    placed = sorted(node for nodes in stages for node in nodes)
    if placed != list(range(setting.num_nodes)):
        yield f"stages hold nodes {placed}; each of {setting.num_nodes} must be in one stage"
    if tuple(map(len, stages)) != setting.replicas:
        yield f"stages have {tuple(map(len, stages))} nodes, not replicas={setting.replicas}"


def _rules(setting: Setting, visits: Sequence[int]) -> Iterator[str]:
    """Stages in the order visited: what is wrong with it."""
    if visits[0] != 0 or len(set(visits)) < len(visits):
        yield f"stages {visits} must begin with 0 and be different ones"
    highest = list(accumulate(visits, max))
    down = [i for i in range(1, len(visits)) if visits[i] < highest[i - 1]]
    if any(highest[i - 1] - visits[i] > 1 for i in down):
        yield f"stages {visits} go back by more than 1"
    if len(down) > setting.max_swaps:
        yield f"stages {visits} swap {len(down)} times; max_swaps={setting.max_swaps}"
    gaps = [b - a - 1 for a, b in zip(highest, [*highest[1:], setting.num_stages], strict=True)]
    if max(gaps) > setting.max_skip:
        yield f"stages {visits} leave out {max(gaps)} in a row; max_skip={setting.max_skip}"


def _memory(setting: Setting, paths: Paths, orders: Orders) -> Iterator[str]:
    """No node ever holds more microbatches than it can, from the start of a forward to the end of its backward."""
    for node, order in enumerate(orders):
        held, most = 0, 0
        for mb, place in order:
            visits = len(paths[mb])
            held += (place < visits) - (place >= visits + 2)
            most = max(most, held)
        if most > setting.limit[node]:
            yield f"node {node} holds {most} microbatches at once; its limit is {setting.limit[node]}"


def _ends(paths: Paths, orders: Orders) -> Iterator[str]:
    """Every place of every chain once, on its node, and no cyclic wait."""
    chains = [[*path, path[0], path[0], *path[::-1]] for path in paths]
    listed = Counter((mb, place, node) for node, order in enumerate(orders) for mb, place in order)
    wanted = Counter((mb, place, node) for mb, nodes in enumerate(chains) for place, node in enumerate(nodes))
    for mb, place, node in (listed - wanted) + (wanted - listed):
        wrong = "extra" if listed[mb, place, node] else "missing"
        yield f"node {node}: place {place} of microbatch {mb} is {wrong}"
        return
    done, at = [0] * len(paths), [0] * len(orders)
    moved = True
    while moved:
        moved = False
        for node, order in enumerate(orders):
            while at[node] < len(order) and done[order[at[node]][0]] == order[at[node]][1]:
                done[order[at[node]][0]] += 1
                at[node] += 1
                moved = True
    for node, order in enumerate(orders):
        if at[node] < len(order):
            yield f"node {node} waits for place {order[at[node]][1]} of microbatch {order[at[node]][0]} for ever"
