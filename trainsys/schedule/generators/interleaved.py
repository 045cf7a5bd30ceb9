"""Interleaved 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2.2): a lane takes vp runs of layers in turns.

The bubble is that of 1F1B divided by vp, for vp times the messages and more activations: stage s of P keeps at most
2(P - s - 1) + (vp - 1)P + 1 microbatches of a run. Lanes take groups of P microbatches through one run, then through
the next; backward the runs go from last to first. A lane starts with as many forwards as fill the pipeline behind it,
then alternates.

With ragged replicas, or microbatches that are no multiple of P, lanes may then wait for each other in a cycle; all
begin with 1, 2, 4, … forwards more until they do not. With all forwards first nobody ever waits in a cycle.
"""

from __future__ import annotations

from collections.abc import Sequence

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule, stage_major


def generate(routes: Routes, vp: int = 1) -> Schedule:
    """Compute-only interleaved schedule; with vp = 1 it is 1F1B with a longer start."""
    placement = stage_major(routes.replicas, vp)
    hosted: list[list[tuple[int, int]]] = [[] for _ in set(placement.values())]
    for pair, lane in placement.items():
        hosted[lane].append(pair)
    more = 0
    while True:
        lanes = tuple(_lane(routes, vp, pairs, more) for pairs in hosted)
        if _ends(lanes, routes.num_stages):
            return Schedule("interleaved", routes, lanes, placement)
        more = max(1, 2 * more)


def _lane(routes: Routes, vp: int, hosted: Sequence[tuple[int, int]], more: int) -> tuple[Action, ...]:
    """The actions of the lane that runs the (stage, replica) pairs `hosted`, with `more` forwards first than needed."""
    stages, most = routes.num_stages // vp, max(routes.replicas)
    place = {mb: i // (stages * most) for i, mb in enumerate(routes.order())}  # its group: P microbatches of a lane
    mine = [(stage, mb) for mb in place for stage, r in hosted if routes.table[stage][mb] == r]
    forwards = [Action(s, Kind.F, mb) for s, mb in sorted(mine, key=lambda a: (place[a[1]], a[0]))]
    backwards = [Action(s, Kind.B, mb) for s, mb in sorted(mine, key=lambda a: (place[a[1]], -a[0]))]
    behind = 2 * (stages - 1 - hosted[0][0] % stages) + (vp - 1) * stages
    first = min(len(mine), -(-behind * most // routes.replicas[hosted[0][0]]) + more)
    pairs = zip(forwards[first:], backwards, strict=False)
    return (*forwards[:first], *(a for pair in pairs for a in pair), *backwards[len(mine) - first :])


def _ends(lanes: Sequence[Sequence[Action]], num_stages: int) -> bool:
    """Whether no lane waits for ever."""
    done: set[Action] = set()
    at = [0] * len(lanes)
    moved = True
    while moved:
        moved = False
        for lane, actions in enumerate(lanes):
            while at[lane] < len(actions) and all(a in done for a in _needs(actions[at[lane]], num_stages)):
                done.add(actions[at[lane]])
                at[lane] += 1
                moved = True
    return all(i == len(actions) for i, actions in zip(at, lanes, strict=True))


def _needs(action: Action, num_stages: int) -> list[Action]:
    stage, mb = action.stage, action.microbatch
    if action.kind is Kind.F:
        return [Action(stage - 1, Kind.F, mb)] if stage else []
    own = [Action(stage, Kind.F, mb)]
    return own + ([Action(stage + 1, Kind.B, mb)] if stage < num_stages - 1 else [])
