"""The verifier accepts what runs and rejects what does not, and says where."""

import dataclasses
import random
from collections.abc import Callable, Sequence

import pytest

from trainsys.schedule import GENERATORS, Action, Kind, Problem, Routes, Schedule, ScheduleError, build, verify
from trainsys.schedule.comms import insert_comms

Lanes = list[list[Action]]
CONSUMER = {Kind.RECV_F: Kind.F, Kind.RECV_B: Kind.B}
PLAIN = ("gpipe", "1f1b", "interleaved", "bfs")  # of F and B alone
PRODUCER = {Kind.SEND_F: Kind.F, Kind.SEND_B: Kind.B}


def with_lanes(schedule: Schedule, lanes: Sequence[Sequence[Action]]) -> Schedule:
    return dataclasses.replace(schedule, lanes=tuple(map(tuple, lanes)))


def any_place(lanes: Lanes, rng: random.Random) -> tuple[list[Action], int]:
    lane = rng.choice([lane for lane in lanes if lane])
    return lane, rng.randrange(len(lane))


def drop(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    del lane[i]


def duplicate(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    lane.insert(rng.randrange(len(lane) + 1), lane[i])


def wrong_stage(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    stage = rng.choice([s for s in range(-1, routes.num_stages + 1) if s != lane[i].stage])
    lane[i] = dataclasses.replace(lane[i], stage=stage)


def wrong_microbatch(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    others = [m for m in range(-1, routes.num_microbatches + 1) if m != lane[i].microbatch]
    lane[i] = dataclasses.replace(lane[i], microbatch=rng.choice(others))


def wrong_kind(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    lane[i] = dataclasses.replace(lane[i], kind=rng.choice([k for k in Kind if k is not lane[i].kind]))


def wrong_lane(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    lane, i = any_place(lanes, rng)
    action = lane.pop(i)
    rng.choice([other for other in lanes if other is not lane]).append(action)


def swap_dependent(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    """RECV with its consumer, producer with its SEND, F with its B: each order is forced."""
    pairs = []
    for lane in lanes:
        place = {action: i for i, action in enumerate(lane)}
        for action, i in place.items():
            partner = CONSUMER.get(action.kind) or PRODUCER.get(action.kind) or Kind.F
            j = place[dataclasses.replace(action, kind=partner)]
            if i != j:
                pairs.append((lane, i, j))
    lane, i, j = rng.choice(pairs)
    lane[i], lane[j] = lane[j], lane[i]


def cross_lanes(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    """Two actions of different lanes change places: also what crosses two SENDs."""
    one, other = rng.sample(lanes, 2)
    i, j = rng.randrange(len(one)), rng.randrange(len(other))
    one[i], other[j] = other[j], one[i]


def swap_routes_of_two_lanes(lanes: Lanes, rng: random.Random, routes: Routes) -> None:
    i, j = rng.sample(range(len(lanes)), 2)
    lanes[i], lanes[j] = lanes[j], lanes[i]


MUTATIONS: list[Callable[[Lanes, random.Random, Routes], None]] = [
    drop,
    duplicate,
    wrong_stage,
    wrong_microbatch,
    wrong_kind,
    wrong_lane,
    swap_dependent,
    cross_lanes,
    swap_routes_of_two_lanes,
]


@pytest.mark.parametrize("mutate", MUTATIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_every_broken_mutant_is_rejected(name: str, mutate: Callable[[Lanes, random.Random, Routes], None]) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        replicas = [rng.randint(1, 3) for _ in range(rng.randint(2, 4))]
        schedule = build(name, Routes.balanced(rng.randint(3, 8), replicas))
        lanes = [list(lane) for lane in schedule.lanes]
        mutate(lanes, rng, schedule.routes)
        with pytest.raises(ScheduleError, match=r"lane \d|lanes"):
            verify(with_lanes(schedule, lanes))


def runs(schedule: Schedule) -> bool:
    """Execute the schedule with tokens for tensors; independent of the verifier and the simulator."""
    last = schedule.routes.num_stages - 1
    mail: set[tuple[str, int, int]] = set()  # (F or B, receiving stage, microbatch)
    posted: list[set[tuple[str, int, int]]] = [set() for _ in schedule.lanes]
    made: list[set[tuple[str, int, int]]] = [set() for _ in schedule.lanes]
    at = [0] * schedule.num_lanes
    moved = True
    while moved:
        moved = False
        for lane, actions in enumerate(schedule.lanes):
            while at[lane] < len(actions):
                action = actions[at[lane]]
                stage, mb, way = action.stage, action.microbatch, action.kind.value[-1]
                if action.kind in PRODUCER:
                    if (way, stage, mb) not in made[lane]:
                        return False
                    mail.add((way, stage + (1 if way == "F" else -1), mb))
                elif action.kind in CONSUMER:
                    posted[lane].add((way, stage, mb))
                else:
                    if way == "B" and ("F", stage, mb) not in made[lane]:
                        return False
                    if stage != (0 if way == "F" else last):
                        if (way, stage, mb) not in posted[lane]:
                            return False
                        if (way, stage, mb) not in mail:
                            break
                    made[lane].add((way, stage, mb))
                at[lane] += 1
                moved = True
    return at == [len(actions) for actions in schedule.lanes]


def test_reordered_schedules_are_accepted_exactly_if_they_run() -> None:
    outcomes = {True: 0, False: 0}
    for seed in range(400):
        rng = random.Random(seed)
        replicas = [rng.randint(1, 2) for _ in range(rng.randint(2, 4))]
        schedule = build(rng.choice(PLAIN), Routes.balanced(rng.randint(2, 6), replicas))
        lanes = [list(lane) for lane in schedule.lanes]
        for _ in range(rng.randint(1, 3)):
            lane, i = any_place(lanes, rng)
            lane.insert(max(0, min(len(lane), i + rng.randint(-4, 4))), lane.pop(i))
        mutant = with_lanes(schedule, lanes)
        expected = runs(mutant)
        outcomes[expected] += 1
        if expected:
            verify(mutant)
        else:
            with pytest.raises(ScheduleError, match="lane"):
                verify(mutant)
    assert min(outcomes.values()) > 50, outcomes


def test_wrong_warm_up_is_a_named_cycle() -> None:
    """Two lanes: the first waits for its first gradient, the second for the second microbatch."""
    routes = Routes.balanced(2, [1, 1])
    lanes = [list(map(Action.parse, text.split())) for text in ("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1")]
    schedule = insert_comms(Schedule("bad", routes, tuple(map(tuple, lanes)), {(0, 0): 0, (1, 0): 1}))
    with pytest.raises(ScheduleError, match=r"cyclic wait: lane 0 waits at 0B0 for B .*; lane 1 waits at 1F1 for F "):
        verify(schedule)


@pytest.mark.parametrize(
    ("lane", "message"),
    [
        ("0F0 0F1 0B0", "lane 0: 0B1 is missing"),
        ("0F0 0B0 0F1 0I1", "lane 0: 0W1 is missing"),
        ("0F0 0B0 0F1 0B1 0I1 0W1", "lane 0: 0B1 stands beside its own halves"),
        ("0F0 0B0 0F1 0W1 0I1", "lane 0: 0W1 comes before 0I1"),
        ("0F0 0B0 0B1 0F1", "lane 0: 0B1 comes before 0F1"),
        ("0F0 0B0 0F1 0B1 0F2", "lane 0: 0F2 is outside of the step"),
        ("0F0 0B0 0F1 0B1 0F0", "lane 0: 0F0 appears twice"),
        ("0F0 0B0 0F1 0B1 0SEND_F1", r"lane 0: 0SEND_F1 \(place 4\) has no stage at its other end"),
    ],
)
def test_messages_name_lane_and_action(lane: str, message: str) -> None:
    schedule = Schedule("x", Routes.balanced(2, [1]), (tuple(map(Action.parse, lane.split())),), {(0, 0): 0})
    with pytest.raises(ScheduleError, match=message):
        verify(schedule)


def test_split_backward_is_accepted() -> None:
    lane = "0F0 0I0 0F1 0I1 0W1 0W0"
    verify(Schedule("x", Routes.balanced(2, [1]), (tuple(map(Action.parse, lane.split())),), {(0, 0): 0}))


def test_stages_on_one_lane_need_no_comms_and_may_have_none() -> None:
    lane = tuple(map(Action.parse, ["0F0", "1F0", "1B0", "0B0"]))
    schedule = Schedule("folded", Routes.balanced(1, [1, 1]), (lane,), {(0, 0): 0, (1, 0): 0})
    assert insert_comms(schedule) == schedule
    verify(schedule)
    with pytest.raises(ScheduleError, match="sends to its own lane"):
        verify(with_lanes(schedule, [[*lane[:1], Action(0, Kind.SEND_F, 0), *lane[1:]]]))


def test_compute_only_schedules_are_rejected() -> None:
    schedule = GENERATORS["1f1b"](Problem(Routes.balanced(2, [1, 1])))
    with pytest.raises(ScheduleError, match="lane 0: 0F0 has no 0SEND_F0"):
        verify(schedule)


def test_a_placement_that_forgets_a_replica_is_rejected() -> None:
    schedule = build("gpipe", Routes.balanced(2, [1, 1]))
    with pytest.raises(ScheduleError, match="stage 1 replica 0 has no lane"):
        verify(dataclasses.replace(schedule, placement={(0, 0): 0}))
