"""Split schedules: published times and activations, any shape, caps, and what is refused."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import golden
from trainsys.schedule import (
    GENERATORS,
    Costs,
    Kind,
    Problem,
    Routes,
    Schedule,
    ScheduleError,
    generate,
    simulate,
    verify,
)
from trainsys.schedule.comms import insert_comms
from trainsys.schedule.generators import blocks
from trainsys.schedule.generators.capped import most_alive
from trainsys.schedule.generators.ready import Priority, in_order_of_events, limits
from trainsys.space.runs import FOLDED

SPLIT = ("zb1p", "zb2p", *sorted(FOLDED))


def problem(
    depth: int, m: int, vp: int = 1, *, folded: bool = False, dp: int = 1, f: float = 1, i: float = 1, w: float = 1,
    cap: float = 0,
) -> Problem:  # fmt: skip
    """Equal replicas and stages; `f`, `i` and `w` of all runs of a lane."""
    f_s, i_s, w_s = ([x / vp] * depth * vp for x in (f, i, w))
    costs = Costs(f_s, [a + b for a, b in zip(i_s, w_s, strict=True)], i_s=i_s, w_s=w_s)
    return Problem(Routes.balanced(m, [dp] * depth, vp, folded), vp, folded, costs, cap)


def asked(name: str, depth: int, m: int, **more: float) -> Problem:
    """With the runs of layers that the schedule wants."""
    return problem(depth, m, 2 if name in FOLDED else 1, folded=name in FOLDED, **more)


def step_s(schedule: Schedule, to: Problem) -> float:
    return simulate(schedule, to.seconds).step_s


@pytest.mark.parametrize("row", golden.published(), ids=lambda row: f"{row.schedule} vp{row.vp}")
def test_step_times_and_activations_are_those_of_the_authors(row: golden.Row) -> None:
    """The orders of the authors' generators and of torch.distributed.pipelining, on a clock without messages."""
    times, peaks = golden.measured(row)
    assert {case: round(step, 1) for case, step in times.items()} == row.times
    assert peaks == row.peaks
    assert len(times) == 5


@st.composite
def problems(draw: st.DrawFn) -> tuple[str, Problem]:
    """A schedule and what it may be asked: one, equal or ragged replicas, unequal costs, perhaps a cap."""
    name = draw(st.sampled_from(list(GENERATORS)))
    depth = draw(st.integers(1, 6))
    vp = 2 if name in FOLDED else 1 if name in ("1f1b", "zb2p") else draw(st.integers(1, 3))
    folded = name in FOLDED or (vp > 1 and draw(st.booleans()))
    replicas = draw(st.one_of(st.integers(1, 3).map(lambda r: [r] * depth), st.lists(
        st.integers(1, 3), min_size=depth, max_size=depth)))  # fmt: skip
    m = draw(st.integers(max(replicas), 14))
    rng = draw(st.randoms(use_true_random=False))
    f_s, i_s, w_s = ([rng.choice((1.0, 1.0, 0.7, 1.3)) for _ in range(depth * vp)] for _ in range(3))
    b_s = [a + b for a, b in zip(i_s, w_s, strict=True)]
    costs = Costs(f_s, b_s, draw(st.sampled_from((0.0, 0.1))), i_s=i_s, w_s=w_s)
    cap = draw(st.sampled_from((0.0, 0.0, 1.0, 1.5, 2.0, 4.0, 6.0)))
    return name, Problem(
        Routes.balanced(m, replicas, vp, folded), vp, folded, draw(st.sampled_from((None, costs))), cap
    )


def _generated(name: str, to: Problem) -> tuple[Schedule | None, str]:
    """The schedule, or why there is none."""
    try:
        return generate(name, to), ""
    except ValueError as error:
        return None, str(error)


@settings(max_examples=200, deadline=None)
@given(problems())
def test_every_schedule_runs_for_every_shape_and_keeps_to_the_cap(case: tuple[str, Problem]) -> None:
    """`generate` verifies: complete, matched, without cyclic waits. Those that can choose are never refused."""
    name, to = case
    schedule, refused = _generated(name, to)
    if schedule is None:
        assert to.cap and name not in ("zb2p", "zbv", "auto"), refused
        kept, cap = re.findall(r"of ([\d.]+) microbatches, more than parallel\.activations=([\d.]+);", refused)[0]
        assert float(kept) > float(cap) == to.cap
        generate(name, dataclasses.replace(to, cap=float(kept)))
        return
    run = simulate(schedule, to.seconds)
    assert list(run.peak_activations) == most_alive(schedule)
    assert not to.cap or max(run.peak_activations) <= to.cap * to.vp
    kinds = {action.kind for lane in schedule.lanes for action in lane if action.is_compute}
    assert kinds == ({Kind.F, Kind.I, Kind.W} if name in SPLIT else kinds)


@pytest.mark.parametrize("name", SPLIT)
def test_replicas_that_are_equal_are_pipelines_of_their_own(name: str) -> None:
    """Of 11 microbatches one replica has 5 and one has 6; each does what a pipeline of so many does."""
    both = GENERATORS[name](asked(name, 3, 11, dp=2))
    for replica, first, m in ((0, 0, 5), (1, 5, 6)):
        alone = GENERATORS[name](asked(name, 3, m))
        for lane, row in enumerate(alone.lanes):
            mine = both.lanes[2 * lane + replica]
            assert [(a.stage, a.kind, a.microbatch - first) for a in mine] == [
                (a.stage, a.kind, a.microbatch) for a in row
            ]


@pytest.mark.parametrize("name", SPLIT)
def test_a_lost_replica_costs_little(name: str) -> None:
    """Against GPipe, which never waits for memory; V-Half and V-Min keep too little to hide an uneven arrival."""
    vp, folded = (2, True) if name in FOLDED else (1, False)
    slower = []
    for replicas in ([4, 4, 3], [3, 4, 4], [4, 3, 4, 4], [2, 2, 2, 1]):
        f_s = [1 / r / vp for r in replicas]
        f_s = f_s + f_s[::-1] if folded else f_s
        to = Problem(Routes.balanced(24, replicas, vp, folded), vp, folded, Costs(f_s, [2 * s for s in f_s]))
        slower.append(step_s(generate(name, to), to) / step_s(generate("gpipe", to), to))
    assert max(slower) < {"vhalf": 1.1, "vmin": 1.35}.get(name, 1.0)


@pytest.mark.parametrize("name", SPLIT)
def test_an_action_that_is_missing_or_late_is_found(name: str) -> None:
    schedule = generate(name, asked(name, 3, 5))
    rng = random.Random(name)
    for _ in range(20):
        lane, at = (which := rng.randrange(3)), rng.randrange(len(schedule.lanes[which]))
        row = schedule.lanes[lane]
        with pytest.raises(ScheduleError, match=f"lane {lane}|lanes"):
            verify(_with_lane(schedule, lane, (*row[:at], *row[at + 1 :])))
    for lane, row in enumerate(schedule.lanes):
        first = next(action for action in row if action.kind is Kind.I)
        w = row.index(dataclasses.replace(first, kind=Kind.W))
        swapped = [row[w] if action == first else first if action == row[w] else action for action in row]
        with pytest.raises(ScheduleError, match=f"lane {lane}: {row[w]} comes before {first}"):
            verify(_with_lane(schedule, lane, tuple(swapped)))


def _with_lane(schedule: Schedule, lane: int, row: tuple[object, ...]) -> Schedule:
    lanes = (*schedule.lanes[:lane], row, *schedule.lanes[lane + 1 :])
    return dataclasses.replace(schedule, lanes=lanes)  # type: ignore[arg-type]


def test_looped_breadth_first_takes_microbatches_back_in_reverse() -> None:
    lane = GENERATORS["bfs"](problem(2, 2, 2)).lanes[1]
    assert " ".join(map(str, lane)) == "1F0 1F1 3F0 3F1 3B1 3B0 1B1 1B0"


@pytest.mark.parametrize("costs", [(1, 1, 1), (1, 1.2, 0.8), (1, 0.8, 1.3)])
def test_with_the_activations_of_zb1p_the_automatic_one_is_as_fast_and_with_more_never_slower(costs) -> None:
    f, i, w = costs
    for depth, m in ((1, 3), (3, 5), (4, 9), (5, 4), (6, 12)):
        steps = []
        for cap in (depth, 1.5 * depth, 2 * depth):
            to = problem(depth, m, f=f, i=i, w=w, cap=cap)
            steps.append(step_s(generate("zb2p", to), to))
        to = problem(depth, m, f=f, i=i, w=w)
        assert steps[0] <= step_s(generate("zb1p", to), to) + 1e-9
        assert sorted(steps, reverse=True) == pytest.approx(steps)


def test_zbv_has_no_bubble_but_the_start() -> None:
    """From 2P - 1 microbatches on, where F, I and W are equal: the last lane starts after (P - 1)/2."""
    for depth in range(1, 8):
        for m in (2 * depth - 1, 2 * depth, 3 * depth + 1):
            to = asked("zbv", depth, m)
            assert step_s(generate("zbv", to), to) == pytest.approx(3 * m + (depth - 1) / 2)


@pytest.mark.parametrize(("name", "most"), [("vhalf", lambda p: (p + 2) // 2), ("vmin", lambda p: (p + 4) // 3)])
def test_controlled_activations(name: str, most) -> None:
    for depth in range(1, 12):
        assert max(most_alive(GENERATORS[name](asked(name, depth, 3 * depth)))) == 2 * min(most(depth), 3 * depth)


@pytest.mark.parametrize("name", ["vhalf", "vmin"])
@pytest.mark.parametrize("depth", [1, 3, 4, 6])
def test_a_long_step_repeats_the_steady_phase(name: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    to = asked(name, depth, 4 * depth + 21)
    repeated = GENERATORS[name](to)
    monkeypatch.setattr(blocks, "_extended", lambda row, more: [])
    assert repeated == GENERATORS[name](to)


def test_auto_is_the_shortest_and_says_which() -> None:
    rng = random.Random(5)
    for vp, folded in ((1, False), (2, False), (2, True)):
        for cap in (0, 2):
            f_s = [rng.uniform(1, 1.5) / vp for _ in range(3 * vp)]
            costs = Costs(f_s, [2 * s for s in f_s], 0.05)
            to = Problem(Routes.balanced(8, [1] * 3, vp, folded), vp, folded, costs, cap)
            auto = generate("auto", to)
            name = auto.name.removeprefix("auto:")
            assert name in (*GENERATORS, "events") and auto.name != name
            for other in set(GENERATORS) - {"auto"}:
                schedule, _ = _generated(other, to)
                assert schedule is not None or other != name
                assert schedule is None or step_s(auto, to) <= step_s(schedule, to) + 1e-9, (other, auto.name)


def test_auto_for_a_long_step_is_told_by_shorter_ones() -> None:
    to = problem(3, 40, f=1, i=1.2, w=0.8)
    assert step_s(generate("auto", to), to) == pytest.approx(40 * 3 + 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.booleans(), st.floats(0, 1))
def test_events_keep_to_any_limits_on_any_routes(seed: int, vp: int, grouped: bool, patience: float) -> None:
    """One microbatch per lane is always enough: nobody waits for memory in a cycle."""
    rng = random.Random(seed)
    depth = rng.randint(1, 5)
    replicas = [rng.randint(1, 3) for _ in range(depth)]
    m = rng.randint(3, 12)
    rows = [list(range(r)) + [rng.randrange(r) for _ in range(m - r)] for r in replicas]
    for row in rows:
        rng.shuffle(row)
    costs = Costs(
        *([rng.choice((0.0, 0.5, 1.0, 1.5)) for _ in range(depth * vp)] for _ in range(2)), rng.choice((0, 0.2))
    )
    to = Problem(Routes(tuple(map(tuple, rows * vp))), vp, costs=costs)
    most = [rng.randint(vp, 3 * vp) for _ in range(sum(replicas))]
    lanes = in_order_of_events(to, most, Priority(grouped, patience))
    schedule = insert_comms(Schedule("events", to.routes, lanes, to.placement))
    verify(schedule)
    assert all(peak <= limit for peak, limit in zip(most_alive(schedule), most, strict=True))


def test_limits_are_shares_where_replicas_differ() -> None:
    assert limits(problem(3, 9, 2), 3) == [6, 6, 6]
    assert limits(problem(3, 9, 2, cap=1.5), 3) == [3, 3, 3]
    ragged = Problem(Routes.balanced(12, [2, 4, 4]))
    assert limits(ragged, 3) == [6, 6, 4, 4, 4, 4, 4, 4, 4, 4]


REFUSED = [
    ("zbv", problem(4, 8), "parallel.schedule=zbv has two runs of layers per stage in a V, not parallel.vp=1; set "
     "parallel.vp=2, or parallel.schedule=1f1b"),
    ("vmin", problem(4, 8, 3, folded=True), "not parallel.vp=3; set parallel.vp=2, or parallel.schedule=interleaved"),
    ("vhalf", problem(4, 8, 2), "not parallel.placement=loop; set parallel.placement=v, or parallel.schedule="),
    ("dualpipev", problem(4, 8, 2), "not parallel.placement=loop; set parallel.placement=v, or"),
    ("zb2p", problem(4, 8, 2), "zb2p has one run of layers per stage, not parallel.vp=2; set parallel.vp=1, or "
     "parallel.schedule=zb1p"),
    ("auto", problem(4, 8, cap=0.5), "parallel.activations=0.5 is less than the 1 microbatch that a stage keeps at "
     "least; set parallel.activations=1 or 0"),
    ("vhalf", problem(8, 9, 2, folded=True, cap=3), "parallel.schedule=vhalf keeps the activations of 5 microbatches, "
     "more than parallel.activations=3; set parallel.activations=5 or 0, or parallel.schedule=auto"),
    ("gpipe", problem(2, 9, cap=3), "gpipe keeps the activations of 9 microbatches, more than parallel.activations=3;"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "to", "message"), REFUSED)
def test_what_cannot_be_built_is_refused_in_one_line(name: str, to: Problem, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        generate(name, to)
    assert "\n" not in str(error.value)
