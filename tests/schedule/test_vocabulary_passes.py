"""E, S, T and G in schedules: verified for many shapes, with the activations that the paper names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainsys.schedule import Costs, Kind, Problem, Routes, Schedule, ScheduleError, generate, simulate, verify
from trainsys.schedule.actions import VOCABULARY
from trainsys.schedule.generators import GENERATORS
from trainsys.schedule.lockstep import check_lockstep
from trainsys.schedule.problem import BARRIERS
from trainsys.schedule.schedule import dumps, loads
from trainsys.space.runs import FOLDED

FORMS = ("one_barrier", "two_barriers")
VP = {"interleaved": 2, "bfs": 2, **dict.fromkeys(FOLDED, 2)}


def problem(name: str, replicas: list[int], m: int, form: str, head: float = 2.0, send_s: float = 0.02) -> Problem:
    """F = I = W of a stage, whose head takes `head` times as long as its layers; S and T are shared by all."""
    vp, folded, depth = VP.get(name, 1), name in FOLDED, len(replicas)
    one = [1 / vp] * depth * vp
    in_s = 2 if form == "one_barrier" else 1
    s_s, t_s = ([n * head / depth] * len(one) for n in (in_s, 3 - in_s))
    if form == "ends":
        one[-1] += head
    costs = Costs(one, [2 * s for s in one], send_s, i_s=one, w_s=one, s_s=s_s, t_s=t_s)
    return Problem(Routes.balanced(m, replicas, vp, folded), vp, folded, costs, vocabulary=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", sorted(set(GENERATORS)))
def test_every_schedule_takes_the_passes(name: str, form: str) -> None:
    for depth, m in ((1, 3), (2, 1), (2, 5), (3, 7), (4, 12)):
        if depth == 1 and name in FOLDED:
            continue
        given = problem(name, [depth and 1] * depth, m, form)
        schedule = generate(name, given)
        for lane in schedule.lanes:
            own = [action for action in lane if action.kind in VOCABULARY]
            assert len(own) == len(set(own)) == 4 * m
            assert len({action.stage for action in own}) == 1
        assert loads(dumps(schedule)).lanes == schedule.lanes
        assert loads(dumps(schedule)).vocabulary == form
        assert sum(simulate(schedule, given.seconds).busy_s) == pytest.approx(m * (3 * depth + 3 * 2.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("replicas", [[2, 1], [1, 3], [1, 2, 1], [2, 3, 1, 2]])
def test_ragged_replicas(replicas: list[int], form: str) -> None:
    for name in ("1f1b", "vhalf", "zb1p"):
        for m in (3, 8):
            schedule = generate(name, problem(name, replicas, m, form))
            for mb in range(m):
                lanes = {schedule.lane_of(stage, mb) for stage in range(schedule.routes.num_stages)}
                for kind in VOCABULARY:
                    assert lanes == {n for n, lane in enumerate(schedule.lanes)
                                     if any((a.kind, a.microbatch) == (kind, mb) for a in lane)}  # fmt: skip


@pytest.mark.parametrize("depth", [2, 3, 4, 6, 8])
def test_each_barrier_keeps_one_more_microbatch(depth: int) -> None:
    for form, more in BARRIERS.items():
        given = problem("1f1b", [1] * depth, 4 * depth, form)
        peaks = simulate(generate("1f1b", given), given.seconds).peak_activations
        assert list(peaks) == [depth - stage + more for stage in range(depth)]


@pytest.mark.parametrize("name", ["1f1b", "vhalf", "zb1p"])
def test_the_head_on_all_lanes_is_faster_where_it_is_large(name: str) -> None:
    steps = {}
    for form in BARRIERS:
        given = problem(name, [1] * 4, 16, form)
        steps[form] = simulate(generate(name, given), given.seconds).step_s
    least = 16 * (3 + 3 * 2.0 / 4)
    assert steps["ends"] > 1.8 * least
    assert least < steps["one_barrier"] < 1.15 * least
    assert least < steps["two_barriers"] < 1.15 * least


def test_half_the_activations_on_every_lane() -> None:
    given = problem("vhalf", [1] * 4, 16, "one_barrier")
    assert simulate(generate("vhalf", given), given.seconds).peak_activations == (6, 6, 6, 6)


def test_equal_columns_run_in_lockstep() -> None:
    check_lockstep(generate("1f1b", problem("1f1b", [2, 2], 8, "one_barrier")), [(0, 1), (2, 3)])


def without(schedule: Schedule, lane: int, text: str) -> Schedule:
    lanes = [[a for a in own if (at, str(a)) != (lane, text)] for at, own in enumerate(schedule.lanes)]
    return replace(schedule, lanes=tuple(map(tuple, lanes)))


def swapped(schedule: Schedule, lane: int, first: str, second: str) -> Schedule:
    own = [str(a) for a in schedule.lanes[lane]]
    i, j = own.index(first), own.index(second)
    actions = list(schedule.lanes[lane])
    actions[i], actions[j] = actions[j], actions[i]
    return replace(schedule, lanes=(*schedule.lanes[:lane], tuple(actions), *schedule.lanes[lane + 1 :]))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_wrong_is_named(form: str) -> None:
    good = generate("1f1b", problem("1f1b", [1, 1], 4, form))
    verify(good)
    cases = [
        (without(good, 1, "1S2"), "lane 1: 1S2 is missing"),
        (without(good, 0, "0E1"), "lane 0: 0E1 is missing"),
        (without(good, 0, "0G3"), "lane 0: 0G3 is missing"),
        (swapped(good, 1, "1S0", "1T0"), "lane 1: 1T0 comes before 1S0"),
        (swapped(good, 0, "0E1", "0G0"), "cyclic wait: lane 0 waits at 0G0 for B of microbatch 0 from lane 0"),
        (replace(good, vocabulary="ends"), "it is at the ends"),
    ]
    for schedule, reason in cases:
        with pytest.raises(ScheduleError, match=reason):
            verify(schedule)
    with pytest.raises(ScheduleError, match=r"cyclic wait: lane 1 waits at 1B0 for .* of microbatch 0 from lane"):
        verify(swapped(good, 1, "1S0" if form == "one_barrier" else "1T0", "1B0"))


def test_a_gate_opens_with_the_last_of_all() -> None:
    """One microbatch, two lanes: each pass starts when what it waits for has arrived, one transfer after the other."""
    one = [1.0, 1.0]
    costs = Costs(one, one, 0.25, i_s=one, w_s=one, s_s=[0.5, 0.5], t_s=[0.5, 0.5])
    schedule = generate("1f1b", Problem(Routes.balanced(1, [1, 1]), costs=costs, vocabulary="two_barriers"))
    starts = {(e.lane, e.action.kind): e.start_s for e in simulate(schedule, costs).events if e.action.is_compute}
    assert [starts[lane, kind] for lane, kind in ((0, Kind.F), (1, Kind.F), (1, Kind.S), (0, Kind.S))] == [
        0.25, 1.5, 2.5, 2.75,
    ]  # fmt: skip
    assert [starts[lane, kind] for lane, kind in ((0, Kind.T), (1, Kind.T), (1, Kind.B), (0, Kind.B))] == [
        3.25, 3.5, 4.0, 5.25,
    ]  # fmt: skip
