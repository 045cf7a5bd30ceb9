"""Microbatches that skip stages or take them in another order, and neighbours that share a lane."""

import dataclasses

import pytest

from trainsys.schedule import Action, Costs, Kind, Routes, Schedule, ScheduleError, simulate, verify
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.lockstep import check_lockstep
from trainsys.schedule.schedule import dumps, loads


def lanes_of(*texts: str) -> tuple[tuple[Action, ...], ...]:
    return tuple(tuple(map(Action.parse, text.split())) for text in texts)


def skipping() -> Schedule:
    """Four stages; microbatch 0 skips stage 1, microbatch 1 skips 2 and visits 3 before 1."""
    routes = Routes(((0, 0), (-1, 0), (0, -1), (0, 0)), ((0, 2, 3), (0, 3, 1)))
    lanes = lanes_of("0F0 0F1 0B0 0B1", "1F1 1B1", "2F0 2B0", "3F1 3F0 3B1 3B0")
    return insert_comms(Schedule("skip", routes, lanes, {(s, 0): s for s in range(4)}))


def test_neighbours_follow_the_path() -> None:
    routes = skipping().routes
    assert [routes.before(s, 1) for s in range(4)] == [None, 3, None, 0]
    assert [routes.after(s, 1) for s in range(4)] == [3, None, None, 1]
    assert routes.replicas == (1, 1, 1, 1)
    assert routes.microbatches(1, 0) == (1,)
    assert routes.path(0) == (0, 2, 3)
    whole = Routes.balanced(2, [1, 1, 1])
    assert [whole.before(s, 1) for s in range(3)] == [None, 0, 1]
    assert [whole.after(s, 1) for s in range(3)] == [1, 2, None]
    assert list(whole.path(1)) == [0, 1, 2]


def test_messages_follow_the_path() -> None:
    schedule = skipping()
    assert " ".join(map(str, schedule.lanes[1])) == "1RECV_F1 1F1 1B1 1SEND_B1"
    assert schedule.counterpart(Action(3, Kind.SEND_F, 1)) == Action(1, Kind.RECV_F, 1)
    assert schedule.peer(Action(3, Kind.SEND_F, 1)) == 1
    assert schedule.peer(Action(3, Kind.SEND_F, 0)) is None
    assert schedule.counterpart(Action(3, Kind.F, 1)) is None
    assert loads(dumps(schedule)) == schedule


def test_a_skipping_step_takes_as_long_as_its_longest_chain() -> None:
    schedule = skipping()
    verify(schedule)
    check_lockstep(schedule, [])
    run = simulate(schedule, Costs([1.0] * 4, [2.0] * 4, send_s=0.5))
    # 0F1 ends at 2 and 3F1 runs until 3.5; 1F1, 1B1 from 4 to 7; 3B1 from 7.5, so 3B0 ends at 11.5
    assert run.step_s == 11.5 + 0.5 + 2.0 + 0.5 + 2.0 + 2.0  # 2B0, then 0B0 and 0B1 on lane 0


@pytest.mark.parametrize(
    ("table", "paths", "message"),
    [
        (((0, 0), (0, -1)), (), r"stage 1 uses replicas \[-1, 0\]"),
        (((0, 0), (0, -1)), ((0, 1),), "1 paths for 2 microbatches"),
        (((0, 0), (0, -1)), ((0, 1), (0, 1)), r"path of microbatch 1 is \[0, 1\] but it has replicas of stages \[0\]"),
        (((0, 0), (0, 0)), ((0, 1), (0, 1, 0)), r"path of microbatch 1 is \[0, 1, 0\]"),
        (((0, -1), (0, -1)), ((0, 1), ()), r"path of microbatch 1 is \[\]"),
        (((0, 1), (0, 2)), ((0, 1), (0, 1)), r"stage 1 uses replicas \[0, 2\]"),
    ],
)
def test_bad_paths_are_refused(
    table: tuple[tuple[int, ...], ...], paths: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Routes(table, paths)


def test_a_stage_that_is_not_visited_has_no_action() -> None:
    schedule = skipping()
    extra = (*schedule.lanes[1], Action(1, Kind.F, 0))
    with pytest.raises(ScheduleError, match=r"lane 1: 1F0 is not on the path of microbatch 0 \(0 2 3\)"):
        verify(dataclasses.replace(schedule, lanes=(schedule.lanes[0], extra, *schedule.lanes[2:])))


def test_order_counts_only_what_visits() -> None:
    """Both replicas of stage 1 are fed by stage 0; microbatch 0 visits neither."""
    routes = Routes(((0, 0, 0, 0), (-1, 0, 1, 1)), ((0,), (0, 1), (0, 1), (0, 1)))
    assert routes.order() == (0, 1, 2, 3)
    assert Routes(((0, 0, 0, 0), (-1, 0, 0, 1)), ((0,), (0, 1), (0, 1), (0, 1))).order() == (0, 1, 3, 2)


def zbv() -> Schedule:
    """P = 2 in a V with m = 2 (Qi et al. 2024, arXiv:2405.15362): lane 0 has stages 0 and 3, lane 1 has 1 and 2."""
    lanes = lanes_of(
        "0F0 0F1 3F0 3I0 3F1 3I1 0I0 3W0 0I1 0W0 3W1 0W1",
        "1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1",
    )
    placement = {(0, 0): 0, (1, 0): 1, (2, 0): 1, (3, 0): 0}
    return insert_comms(Schedule("zbv", Routes.balanced(2, [1, 1], 2, folded=True), lanes, placement))


def test_a_v_passes_its_turn_on_the_lane_itself() -> None:
    schedule = zbv()
    verify(schedule)
    sends = [[str(a) for a in lane if a.kind in (Kind.SEND_F, Kind.SEND_B)] for lane in schedule.lanes]
    assert sends == [["0SEND_F0", "0SEND_F1", "3SEND_B0", "3SEND_B1"], ["2SEND_F0", "2SEND_F1", "1SEND_B0", "1SEND_B1"]]
    assert schedule.peer(Action(1, Kind.SEND_F, 0)) == schedule.peer(Action(1, Kind.RECV_B, 0)) == 1
    ones = [1.0] * 4
    run = simulate(schedule, Costs(ones, [2.0] * 4))
    assert run.step_s == 13.0  # 12 of work, and one before the first microbatch reaches lane 1 or comes back to lane 0
    assert run.peak_activations == (4, 4)
    delayed = simulate(schedule, Costs(ones, [2.0] * 4, send_s=0.25))
    assert delayed.step_s == 14.0  # lane 0 waits for two messages before 3F0, and for two more before 0I0


def test_a_local_tensor_must_be_made_before_it_is_used() -> None:
    first, second = zbv().lanes
    wrong = list(second)
    i, j = wrong.index(Action(1, Kind.F, 0)), wrong.index(Action(2, Kind.F, 0))
    wrong[i], wrong[j] = wrong[j], wrong[i]
    schedule = dataclasses.replace(zbv(), lanes=(first, tuple(wrong)))
    for check in (verify, lambda s: simulate(s, Costs([1.0] * 4, [2.0] * 4))):
        with pytest.raises(ScheduleError, match="lane 1: 2F0 comes before 1F0"):
            check(schedule)
    wrong = [a for a in second if a != Action(1, Kind.I, 1)]
    with pytest.raises(ScheduleError, match="lane 1: 1I1 is missing"):
        verify(dataclasses.replace(zbv(), lanes=(first, tuple(wrong))))
    wrong = [*second, Action(1, Kind.SEND_F, 0)]
    with pytest.raises(ScheduleError, match=r"lane 1: 1SEND_F0 \(place \d+\) sends to its own lane"):
        verify(dataclasses.replace(zbv(), lanes=(first, tuple(wrong))))


def test_a_cycle_through_a_v_is_named() -> None:
    """Lane 0 wants the second microbatch back before it sends it."""
    lanes = lanes_of("0F0 3F0 3F1 0F1 3B0 3B1 0B0 0B1", "1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1")
    schedule = insert_comms(dataclasses.replace(zbv(), lanes=lanes))
    pattern = "cyclic wait: lane 0 waits at 3F1 for F of microbatch 1 from lane 1; lane 1 waits at 1F1 .* from lane 0$"
    for check in (verify, lambda s: simulate(s, Costs([1.0] * 4, [2.0] * 4))):
        with pytest.raises(ScheduleError, match=pattern):
            check(schedule)
