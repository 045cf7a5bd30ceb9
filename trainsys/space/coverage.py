"""Whether the living ranks still hold everything.

A piece is lost when all who keep it are dead, which depends on its stage, class, seat and shard alone: the check looks
at teams, and at a tensor only to see whether a lost seat had a piece of it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from trainsys.space.box import Box
from trainsys.space.deal import Deal, Deals, Kind, Shelf, TeamTensors
from trainsys.space.layout import Layout, Piece
from trainsys.space.places import piece_places
from trainsys.space.stage import Team
from trainsys.space.tensor import Space


class LostError(ValueError):
    """Some coordinates have no living holder."""


def check_covered(space: Space, layout: Layout, alive: Collection[int]) -> None:
    """Every coordinate of `layout` has a living holder.

    Raises:
        LostError: naming the first that has none.
    """
    dead = set(layout.ranks).difference(alive)
    if not dead:
        return
    deals = Deals(space, layout)
    stages = [s for s, stage in enumerate(layout.stages) if any(not dead.isdisjoint(team) for team in stage.teams)]
    touched = sorted({number for s in stages for number in deals.of_team(s, None)})
    gone: dict[tuple[object, ...], list[tuple[int, int, int]]] = {}
    shelves: dict[tuple[int, int], Shelf] = {}
    for deal in map(deals.__getitem__, touched):
        kind = deal.kind
        turn = deal.tensor % kind.shared if kind.shared <= layout.tolerates else 0
        key = (kind.stages, kind.expert_class, kind.copies, kind.shared, turn)
        if key not in gone:
            gone[key] = _gone(layout, kind, deals.holding(kind), turn, dead)
        cells = []
        for stage, team, shard in gone[key]:
            if (stage, team) not in shelves:
                tensors = TeamTensors(layout, deals, stage, layout.stages[stage].classes[team])
                shelves[stage, team] = Shelf(tensors, team)
            cell = shelves[stage, team].first_cell(deal.tensor)
            if cell is not None:
                cells.append((shard, cell))
        if cells:
            box = _box(space, layout, deal, *min(cells))
            raise LostError(f"{space.tensors[deal.tensor].name}{box}: no living rank holds it")


def _gone(
    layout: Layout, kind: Kind, holding: Sequence[tuple[int, int]], turn: int, dead: set[int]
) -> list[tuple[int, int, int]]:
    """The (stage, team, shard) whose cells of such a tensor nobody keeps any more; of equal shards the first.

    Args:
        holding: the (stage, team) of all that compute with it.
        turn: among these, where all keep it, of the one whose peers do, too.
    """
    shards = [range(t, t + kind.copies) for t in range(0, layout.tp, kind.copies)]
    teams = [layout.stages[s].teams[i] for s, i in holding]
    if kind.shared > 1:
        guard = teams[turn]
        return [
            (*holding[0], equal[0]) for equal in shards if not any(_kept(layout, teams, guard, t, dead) for t in equal)
        ]
    return [
        (*where, equal[0])
        for where, team in zip(holding, teams, strict=True)
        if not dead.isdisjoint(team)
        for equal in shards
        if not any(_kept(layout, (team,), team, t, dead) for t in equal)
    ]


def _kept(layout: Layout, teams: Sequence[Team], guard: Team, shard: int, dead: set[int]) -> bool:
    """Whether one of `teams` lives, or a mirror."""
    holders = (*(team[shard] for team in teams), *layout.peers_for(guard[shard], teams))
    return not dead.issuperset(holders)


def _box(space: Space, layout: Layout, deal: Deal, shard: int, cell: int) -> Box:
    """The first box of a cell."""
    start = cell * deal.grain
    piece = Piece(deal.tensor, shard, start, min(start + deal.grain, deal.numel))
    return piece_places(space.tensors[deal.tensor], layout.tp, piece, 0)[0].box
