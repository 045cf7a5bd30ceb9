"""Actions, routes, text forms, generators."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsys.schedule import GENERATORS, Action, Costs, Kind, Problem, Routes, build, simulate
from trainsys.schedule.generators.one_f_one_b import in_flight_limit
from trainsys.schedule.schedule import Schedule, dumps, loads
from trainsys.space.runs import FOLDED

PLAIN = ("gpipe", "1f1b", "interleaved", "bfs")  # of F and B alone


def built(name: str, m: int, replicas: list[int]) -> Schedule:
    """With as many runs of layers as the schedule wants."""
    vp = 2 if name in FOLDED else 1
    return build(name, Routes.balanced(m, replicas, vp, name in FOLDED), vp)


@given(st.integers(0, 999), st.sampled_from(list(Kind)), st.integers(0, 999))
def test_actions_print_and_parse_back(stage: int, kind: Kind, microbatch: int) -> None:
    action = Action(stage, kind, microbatch)
    assert str(action) == f"{stage}{kind.value}{microbatch}"
    assert Action.parse(str(action)) == action


@pytest.mark.parametrize("token", ["", "F0", "2X0", "2F", "-1F0", "2F0 ", "2f0", "2SEND_W0", "٢F0"])
def test_a_bad_token_is_named(token: str) -> None:
    with pytest.raises(ValueError, match=f"'{token}' is not an action"):
        Action.parse(token)


def test_balanced_routes_are_contiguous_and_near_equal() -> None:
    assert Routes.balanced(8, [2, 1, 3]).table == (
        (0, 0, 0, 0, 1, 1, 1, 1),
        (0,) * 8,
        (0, 0, 1, 1, 1, 2, 2, 2),
    )
    for m, count in itertools.product(range(1, 30), range(1, 9)):
        if count <= m:
            sizes = [len(Routes.balanced(m, [count]).microbatches(0, r)) for r in range(count)]
            assert sum(sizes) == m
            assert max(sizes) - min(sizes) <= 1


def test_more_replicas_than_microbatches_names_the_knob() -> None:
    with pytest.raises(ValueError, match=r"stage 1 has 5 replicas .* 4 microbatches; lower batch.microbatch_size"):
        Routes.balanced(4, [1, 5])
    with pytest.raises(ValueError, match="stage 0 has 0 replicas"):
        Routes.balanced(4, [0])


def test_routes_refuse_holes() -> None:
    with pytest.raises(ValueError, match=r"stage 1 uses replicas \[0, 2\]"):
        Routes(((0, 0), (0, 2)))
    with pytest.raises(ValueError, match="stage 1 has 1 microbatches"):
        Routes(((0, 0), (0,)))


def test_a_single_replica_takes_from_its_two_feeders_in_turn() -> None:
    assert Routes.balanced(8, [2, 1]).order() == (0, 4, 1, 5, 2, 6, 3, 7)
    assert Routes.balanced(4, [1, 1]).order() == (0, 1, 2, 3)


def test_uniform_1f1b_is_the_textbook_schedule() -> None:
    for stages, m in itertools.product(range(1, 9), range(1, 25)):
        schedule = GENERATORS["1f1b"](Problem(Routes.balanced(m, [1] * stages)))
        for stage, lane in enumerate(schedule.lanes):
            warmup = min(m, stages - 1 - stage)
            expected = [f"{stage}F{i}" for i in range(warmup)]
            for i in range(warmup, m):
                expected += [f"{stage}F{i}", f"{stage}B{i - warmup}"]
            expected += [f"{stage}B{i}" for i in range(m - warmup, m)]
            assert list(map(str, lane)) == expected


def test_1f1b_limit_is_the_depth_behind_the_stage_and_grows_by_its_share_of_it() -> None:
    assert [in_flight_limit((3, 3, 3, 3), stage) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight_limit((2, 2, 1), stage) for stage in range(3)] == [4, 3, 1]
    assert in_flight_limit((1, 4), 0) == 1 + 4 + 1


def test_1f1b_with_a_lost_replica_stays_close_to_gpipe() -> None:
    """GPipe keeps everything alive, so it never waits for memory: the yardstick."""
    slower = []
    for replicas in ([2, 2, 1], [2, 1, 2], [1, 2, 2], [2, 2, 2, 1], [4, 4, 3], [3, 4, 4], [4, 3, 4]):
        costs = Costs([1.0] * len(replicas), [2.0] * len(replicas))
        steps = [simulate(build(name, Routes.balanced(16, replicas)), costs).step_s for name in ("1f1b", "gpipe")]
        slower.append(steps[0] / steps[1])
    assert sum(slower) / len(slower) < 1.03
    assert max(slower) < 1.16


def test_schedules_run_for_every_small_ragged_pipeline() -> None:
    for stages in range(1, 4):
        for replicas in itertools.product(range(1, 5), repeat=stages):
            for m in range(max(replicas), 17, 3):
                for name in PLAIN:
                    build(name, Routes.balanced(m, replicas))


@given(st.sampled_from(PLAIN), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(4, 16))
def test_ragged_schedules_run_within_their_limits(name: str, replicas: list[int], m: int) -> None:
    schedule = build(name, Routes.balanced(m, replicas))
    assert schedule.num_lanes == sum(replicas)
    f_s = [1 / r for r in replicas]
    run = simulate(schedule, Costs(f_s, [2 * t for t in f_s], send_s=0.01))
    for (stage, replica), lane in schedule.placement.items():
        mine = len(schedule.routes.microbatches(stage, replica))
        limit = in_flight_limit(tuple(replicas), stage)
        assert run.peak_activations[lane] <= (mine if name != "1f1b" else min(mine, limit))
        way_in_and_out = 3 * sum(f_s[:stage])
        assert run.step_s >= run.busy_s[lane] + way_in_and_out - 1e-9


def test_arbitrary_routes_run_too() -> None:
    rng = random.Random(7)
    for _ in range(150):
        replicas = [rng.randint(1, 4) for _ in range(rng.randint(1, 5))]
        m = rng.randint(4, 16)
        rows = [list(range(count)) + [rng.randrange(count) for _ in range(m - count)] for count in replicas]
        for row in rows:
            rng.shuffle(row)
        for name in PLAIN:
            build(name, Routes(tuple(map(tuple, rows))))


def test_unknown_schedule_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"parallel.schedule=2f2b is unknown; choose one of gpipe, 1f1b"):
        build("2f2b", Routes.balanced(2, [1]))


@pytest.mark.parametrize("name", list(GENERATORS))
def test_text_round_trip(name: str) -> None:
    schedule = built(name, 7, [2, 3, 1])
    assert loads(dumps(schedule)) == schedule


def test_loads_names_the_line_and_the_token() -> None:
    with pytest.raises(ValueError, match="line 3: '0Q1' is not an action"):
        loads("schedule x\nroute 0: 0 0\nlane 0 [0.0]: 0F0 0Q1\n")


def test_the_table_has_a_row_per_lane_with_aligned_columns() -> None:
    lines = build("1f1b", Routes.balanced(3, [1, 1])).format().splitlines()
    assert lines[0] == "1f1b: 2 lanes, 3 microbatches"
    assert lines[1].startswith("lane 0 (stage 0.0) | 0F0")
    assert lines[2].startswith("lane 1 (stage 1.0) | 1RECV_F0 ")
    assert lines[1].index("|") == lines[2].index("|")


@pytest.mark.parametrize("name", list(GENERATORS))
def test_receives_are_posted_one_compute_ahead_and_no_more(name: str) -> None:
    schedule = built(name, 9, [1, 2, 1])
    last = schedule.routes.num_stages - 1
    halves = [action.kind is Kind.I for lane in schedule.lanes for action in lane if action.kind in (Kind.B, Kind.I)]
    assert all(halves) or not any(halves)
    backward = Kind.I if halves[0] else Kind.B
    for at, lane in enumerate(schedule.lanes):
        computes = [a for a in lane if a.is_compute]
        held = 0
        for action in lane:
            if action.kind in (Kind.RECV_F, Kind.RECV_B):
                held += 1
                consumer = Action(action.stage, Kind.F if action.kind is Kind.RECV_F else backward, action.microbatch)
                previous = computes[max(0, computes.index(consumer) - 1)]
                assert lane.index(action) < lane.index(previous)
            elif action.kind in (Kind.F, backward):
                source = action.stage + (-1 if action.kind is Kind.F else 1)
                assert held <= 2
                held -= 0 <= source <= last and schedule.lane_of(source, action.microbatch) != at
        assert held == 0
