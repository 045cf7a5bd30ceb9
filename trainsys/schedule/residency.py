"""Passes that keep less between forward and backward: run the forward again, or put its activations on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.schedule import Schedule

_BACKWARD = frozenset({Kind.B, Kind.I})
_USES = _BACKWARD | {Kind.R}


def with_recompute(schedule: Schedule, stages: Collection[int] | None = None) -> Schedule:
    """An R just before each B or I of `stages` (all by default): F keeps its input alone (Chen et al. 2016,
    arXiv:1604.06174).

    Works before and after `insert_comms`; what has its R already is left as it is.

    Raises:
        ValueError: the schedule has not all of `stages`.
    """
    chosen, lanes = _chosen(schedule, stages), []
    for actions in schedule.lanes:
        present = {(a.stage, a.microbatch) for a in actions if a.kind is Kind.R}
        lane: list[Action] = []
        for action in actions:
            stage, mb = action.stage, action.microbatch
            if action.kind in _BACKWARD and stage in chosen and (stage, mb) not in present:
                lane.append(Action(stage, Kind.R, mb))
            lane.append(action)
        lanes.append(tuple(lane))
    return dataclasses.replace(schedule, lanes=tuple(lanes))


def with_offload(schedule: Schedule, stages: Collection[int] | None = None, ahead: int = 1) -> Schedule:
    """An OFFLOAD behind each F of `stages` (all by default), and a RELOAD `ahead` compute actions before its use.

    The use is the first R, B or I of the same stage and microbatch. Where fewer than `ahead` compute actions lie
    between, RELOAD follows OFFLOAD: such a stage, as the last one of 1F1B, frees nothing and waits for both copies.
    Works before and after `insert_comms`; what is offloaded already is left as it is.

    Raises:
        ValueError: the schedule has not all of `stages`, or `ahead` is negative.
    """
    if ahead < 0:
        raise ValueError(f"ahead={ahead} compute actions; a RELOAD cannot come after its use, set ahead=0 or more")
    chosen = _chosen(schedule, stages)
    lanes = tuple(_offloaded(actions, chosen, ahead) for actions in schedule.lanes)
    return dataclasses.replace(schedule, lanes=lanes)


def _offloaded(actions: tuple[Action, ...], chosen: Collection[int], ahead: int) -> tuple[Action, ...]:
    """One lane: copies stand just before a compute action, behind what the one before it sends."""
    computes = [action for action in actions if action.is_compute]
    present = {(a.stage, a.microbatch) for a in actions if a.kind is Kind.OFFLOAD}
    copies: list[list[Action]] = [[] for _ in range(len(computes) + 1)]
    begun: dict[tuple[int, int], int] = {}  # (stage, microbatch) that is on the device -> place of its F
    for place, action in enumerate(computes):
        stage, mb = action.stage, action.microbatch
        if stage not in chosen or (stage, mb) in present:
            continue
        if action.kind is Kind.F:
            begun[stage, mb] = place
            copies[place + 1].insert(0, Action(stage, Kind.OFFLOAD, mb))
        elif action.kind in _USES and (stage, mb) in begun:
            start = max(place - ahead, begun.pop((stage, mb)) + 1)
            copies[start].append(Action(stage, Kind.RELOAD, mb))
    lane: list[Action] = []
    at = 0
    for action in actions:
        if action.is_compute:
            lane += copies[at]
            at += 1
        lane.append(action)
    return (*lane, *copies[at])


def _chosen(schedule: Schedule, stages: Collection[int] | None) -> Collection[int]:
    count = schedule.routes.num_stages
    chosen = range(count) if stages is None else frozenset(stages)
    unknown = sorted(set(chosen) - set(range(count)))
    if unknown:
        raise ValueError(f"stages {unknown} are not in the schedule, which has {count}; choose from 0 to {count - 1}")
    return chosen
