"""Which lanes may exchange inside their actions."""

from __future__ import annotations

import pytest

from trainsys.schedule.actions import Action, Kind
from trainsys.schedule.generators import GENERATORS, build
from trainsys.schedule.lockstep import check_lockstep
from trainsys.schedule.routes import Routes
from trainsys.schedule.schedule import Schedule, ScheduleError
from trainsys.space.runs import FOLDED


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("pairs", [((0, 1), (2, 3)), ((0, 3), (1, 2))])
def test_equal_replicas_run_in_lockstep_however_paired(name: str, pairs: tuple[tuple[int, int], ...]) -> None:
    vp = 2 if name in FOLDED else 1
    schedule = build(name, Routes.balanced(16, (4, 4, 4), vp, name in FOLDED), vp)
    other = ((0, 2), (1, 3))
    groups = [[schedule.placement[s, r] for r in pair] for s in range(3) for pair in (other if s == 1 else pairs)]
    check_lockstep(schedule, groups)


def test_unequal_shares_are_refused() -> None:
    schedule = build("1f1b", Routes.balanced(5, (2,)))
    with pytest.raises(ScheduleError, match="lanes 0 and 1 cannot run in lockstep: 4 against 6 actions"):
        check_lockstep(schedule, [[0, 1]])


def test_another_order_is_refused() -> None:
    f, b = ([Action(0, kind, mb) for mb in range(4)] for kind in (Kind.F, Kind.B))
    lanes = ((f[0], b[0], f[1], b[1]), (f[2], f[3], b[2], b[3]))
    schedule = Schedule("mixed", Routes.balanced(4, (2,)), lanes, {(0, 0): 0, (0, 1): 1})
    check_lockstep(schedule, [])
    with pytest.raises(ScheduleError, match="action 1 is B against F"):
        check_lockstep(schedule, [[0, 1]])


def test_groups_that_wait_for_each_other_are_found() -> None:
    """Stage 0's lanes meet on microbatches 0 and 3, then 1 and 2; stage 1 wants 0 with 2 first, and the other stage
    cannot go on without it."""
    first = [[Action(0, Kind.F, mb) for mb in order] for order in ((0, 1), (3, 2))]
    second = [[Action(1, Kind.F, mb) for mb in order] for order in ((0, 1), (2, 3))]
    for lane, stage in ((first, 0), (second, 1)):
        for actions in lane:
            actions += [Action(stage, Kind.B, a.microbatch) for a in actions]
    first[0] = [first[0][i] for i in (0, 2, 1, 3)]  # F0 B0 F1 B1: B0 needs stage 1's F0, which meets F2
    first[1] = [first[1][i] for i in (0, 2, 1, 3)]
    schedule = Schedule(
        "crossed", Routes.balanced(4, (2, 2)), tuple(map(tuple, (*first, *second))),
        {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3},
    )  # fmt: skip
    with pytest.raises(ScheduleError, match=r"lanes \[0, 1\] in lockstep wait for ever before 0B0"):
        check_lockstep(schedule, [[0, 1], [2, 3]])
