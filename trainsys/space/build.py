"""Make layouts: from a configured mesh, and from an older layout when ranks have come or gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainsys.config import ParallelConfig
from trainsys.space.layout import Layout, Stage, Team
from trainsys.space.seats import default_seats, reseat
from trainsys.space.tensor import EMBED


def stage_blocks(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Block interval of each stage; the embedding joins the first stage, norm and head the last."""
    bounds, first = [], 0
    for n in layers:
        bounds.append((first, first + n))
        first += n
    bounds[0] = (EMBED, bounds[0][1])
    bounds[-1] = (bounds[-1][0], bounds[-1][1] + 1)
    return bounds


def build_layout(
    parallel: ParallelConfig, layers: Sequence[int], ranks: Sequence[int], chunk: int, node_of: Callable[[int], int]
) -> Layout:
    """Place a mesh on `ranks`: tp fastest, then pp, then replicas, so that replicas of a stage lie far apart.

    Args:
        parallel: degrees; ``stage_replicas`` gives each stage its own number of replicas.
        layers: transformer layers per stage.
        ranks: at least the ranks the mesh needs, node-major.
        chunk: elements per piece.
        node_of: node of a rank, for choosing mirrors.

    Raises:
        ValueError: when there are too few ranks.
    """
    replicas = tuple(parallel.stage_replicas) or (parallel.dp,) * len(layers)
    _check_enough(sum(replicas) * parallel.tp, ranks)
    fresh = iter(_teams(ranks, parallel.tp))
    teams: list[list[Team]] = [[] for _ in layers]
    for replica in range(max(replicas)):
        for s, count in enumerate(replicas):
            if replica < count:
                teams[s].append(next(fresh))
    stages = tuple(
        Stage(first, stop, tuple(t), default_seats(len(t)))
        for (first, stop), t in zip(stage_blocks(layers), teams, strict=True)
    )
    return Layout(stages, parallel.tp, parallel.zero, chunk, mirrors([r for t in teams for m in t for r in m], node_of))


def succeed(
    old: Layout, parallel: ParallelConfig, layers: Sequence[int], alive: Sequence[int], node_of: Callable[[int], int]
) -> Layout:
    """The layout after a change of membership, with as many teams as possible left where they are.

    A team stays at its stage when all of its ranks are alive, tp is unchanged and the stage still wants it; the other
    ranks form new teams. Where every stage keeps its layers, seats are edited so that the fewest pieces move.

    Raises:
        ValueError: when there are too few ranks.
    """
    blocks = stage_blocks(layers)
    wanted = tuple(parallel.stage_replicas) or (parallel.dp,) * len(layers)
    _check_enough(sum(wanted) * parallel.tp, alive)
    same_blocks = [(s.first, s.stop) for s in old.stages] == blocks and parallel.tp == old.tp
    alive_set = set(alive)
    kept: list[dict[int, Team]] = [{} for _ in blocks]  # old replica index -> team
    for s in range(min(len(blocks), old.pp) if parallel.tp == old.tp else 0):
        for replica, team in enumerate(old.stages[s].teams):
            if alive_set.issuperset(team) and len(kept[s]) < wanted[s]:
                kept[s][replica] = team
    used = {r for stage in kept for team in stage.values() for r in team}
    fresh = iter(_teams([r for r in alive if r not in used], parallel.tp))
    stages = []
    for s, (first, stop) in enumerate(blocks):
        staying = list(kept[s].items())
        teams = [team for _, team in staying] + [next(fresh) for _ in range(wanted[s] - len(staying))]
        seats = default_seats(len(teams))
        if same_blocks:
            seats = reseat(old.stages[s].seats, {r: i for i, (r, _) in enumerate(staying)}, len(teams))
        stages.append(Stage(first, stop, tuple(teams), seats))
    ranks = [r for stage in stages for team in stage.teams for r in team]
    return Layout(tuple(stages), parallel.tp, parallel.zero, old.chunk, mirrors(ranks, node_of))


def mirrors(ranks: Sequence[int], node_of: Callable[[int], int]) -> tuple[tuple[int, int], ...]:
    """A peer for every rank: the next one around a ring that alternates nodes, on another node where there is one."""
    seen: dict[int, int] = {}
    order = []
    for rank in sorted(ranks):
        depth = seen.setdefault(node_of(rank), 0)
        seen[node_of(rank)] += 1
        order.append((depth, rank))
    ring = [rank for _, rank in sorted(order)]
    nodes = [node_of(rank) for rank in ring]
    n = len(ring)
    if n == 1:
        return ()
    away = next((k for k in range(1, n) if nodes[k] != nodes[0]), n)  # how far ahead another node is; n: nowhere
    pairs = []
    for i in range(n, 0, -1):  # backwards, so that each rank looks at the next one only
        away = 1 if nodes[i % n] != nodes[i - 1] else away + 1
        pairs.append((ring[i - 1], ring[(i - 1 + away) % n if away < n else i % n]))
    return tuple(sorted(pairs))


def _check_enough(need: int, ranks: Sequence[int]) -> None:
    if need > len(ranks):
        raise ValueError(f"the layout needs {need} ranks but only {len(ranks)} are there; set parallel.dp lower")


def _teams(ranks: Sequence[int], tp: int) -> list[Team]:
    return [tuple(ranks[i : i + tp]) for i in range(0, len(ranks) - tp + 1, tp)]
