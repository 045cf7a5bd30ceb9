"""Plans that skip stages: they keep every rule and limit, are never slower than what they start from, and run."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.planner.skip.agent import Closed, Map
from trainsys.planner.skip.bound import bound_s
from trainsys.planner.skip.check import check_paths
from trainsys.planner.skip.conflict_search import settled
from trainsys.planner.skip.dispatch import Order, dispatch
from trainsys.planner.skip.places import any_places, choose_places, grouped, places_s
from trainsys.planner.skip.rules import next_stages
from trainsys.planner.skip.search import search
from trainsys.planner.skip.setting import Setting, on_topology, without_skips
from trainsys.planner.skip.to_schedule import costs_of, events_of, to_schedule
from trainsys.schedule.simulate import simulate
from trainsys.schedule.verify import verify


def given_nodes(
    replicas: tuple[int, ...], microbatches: int, visits: int, limit: int = 3, seed: int = 0, **more: object
) -> Setting:
    dice, nodes = Random(seed), sum(replicas)
    return Setting(
        replicas,
        microbatches,
        visits,
        tuple(dice.choice((0.5, 1.0, 1.5)) for _ in range(nodes)),
        tuple(dice.randint(1, limit) for _ in range(nodes)),
        tuple(tuple(dice.uniform(0, 2) for _ in range(nodes)) for _ in range(nodes)),
        **more,  # type: ignore[arg-type]
    )


@st.composite
def cases(draw: st.DrawFn) -> Setting:
    replicas = tuple(draw(st.lists(st.integers(1, 3), min_size=2, max_size=6)))
    visits = draw(st.integers(2, len(replicas)))
    least = -(-(len(replicas) - visits) // visits)
    m = draw(st.integers(replicas[0], 8))
    lowest = -(-m * (visits - 1) // (len(replicas) - 1))
    limits = (m, *(draw(st.integers(lowest, m)) for _ in replicas[1:]))
    close = draw(st.booleans())  # gaps may make some stages indispensable: then no limits on stages as well
    return given_nodes(
        replicas, m, visits, draw(st.integers(1, 4)), draw(st.integers(0, 999)),
        stage_limit=(m,) * len(replicas) if close else draw(st.sampled_from([(), limits])),
        max_skip=max(least, draw(st.integers(0, 2))) if close else len(replicas), max_swaps=draw(st.integers(0, 2)),
    )  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 99))
def test_every_plan_keeps_its_limits_and_runs(setting: Setting, seed: int) -> None:
    stages = any_places(setting, seed)
    plan = search(setting, stages, evaluations=80, seed=seed)
    check_paths(setting, stages, plan.paths, plan.orders)
    assert plan.step_s <= min(plan.starts.values())
    assert plan.step_s >= bound_s(setting, stages) - 1e-9
    schedule = to_schedule(plan, per_node=True)
    verify(schedule)
    assert simulate(schedule, costs_of(plan, per_node=True)).step_s == pytest.approx(plan.step_s, rel=1e-12)


def test_stages_of_the_schedule_are_the_plan_s() -> None:
    setting = given_nodes((2, 2, 2, 1), 6, 3)
    equal = replace(setting, compute_s=(1.0,) * 7, head=0.5)
    plan = search(equal, any_places(equal), evaluations=50)
    schedule = to_schedule(plan)
    verify(schedule)
    assert schedule.routes.paths == tuple((*(s for s, _ in path), 4) for path in plan.visits)
    found = simulate(schedule, costs_of(plan))
    assert found.step_s == pytest.approx(plan.step_s, rel=1e-12)
    computed = {(e.lane, e.action): pytest.approx(e[2:]) for e in found.events if e.action.is_compute}
    assert {(e.lane, e.action): e[2:] for e in events_of(plan)} == computed
    uneven = search(setting, any_places(setting), evaluations=20)
    with pytest.raises(ValueError, match=r"nodes of stage \d take .* ask with per_node=True"):
        costs_of(uneven)


def test_limits_that_leave_no_paths_are_told() -> None:
    setting = given_nodes((1,) * 6, 4, 2, max_skip=2)  # only stage 3 is near enough to both ends
    with pytest.raises(
        ValueError, match=r"found no 4 paths of 2 of 6 stages within max_skip=2 and stage_limit=\(4, 1,"
    ):
        search(setting, any_places(setting))


def test_a_small_case_is_solved() -> None:
    """All paths in all orders of preference are tried; the search finds as good a plan."""
    setting = given_nodes((2, 2, 1, 1), 3, 3, limit=2, seed=5, max_swaps=1)
    stages = grouped(setting, range(6))
    ways = [[p for p in _paths(setting, stages) if p[0] == setting.home(stages, mb)] for mb in range(3)]
    stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}
    best = float("inf")
    for paths in product(*ways):
        count = [sum(stage_of[n] == s for p in paths for n in p) for s in range(4)]
        if all(c <= most for c, most in zip(count, setting.capacity, strict=True)):
            best = min(best, *(dispatch(setting, paths, Order(rank)).step_s for rank in permutations(range(3))))
    assert search(setting, stages, evaluations=3000, seed=1).step_s <= best + 1e-9


def _paths(setting: Setting, stages: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
    """By the rules as the checker has them."""
    found = []
    for order in permutations(range(1, setting.num_stages), setting.visits - 1):
        if not list(_wrong(setting, (0, *order))):
            found += list(product(*(stages[stage] for stage in (0, *order))))
    return found


def _wrong(setting: Setting, visits: tuple[int, ...]) -> list[str]:
    from trainsys.planner.skip.check import _rules

    return list(_rules(setting, visits))


@pytest.mark.parametrize(("visits", "max_skip", "max_swaps"), [(4, 4, 2), (3, 1, 1), (6, 0, 2), (4, 2, 0), (5, 1, 1)])
def test_steps_lead_to_all_that_the_rules_allow(visits: int, max_skip: int, max_swaps: int) -> None:
    setting = given_nodes((1,) * 6, 1, visits, max_skip=max_skip, max_swaps=max_swaps)
    reached, more = [(0,)], []
    for _ in range(visits - 1):
        more = [(*seen, stage) for seen in reached for stage in next_stages(setting, seen)]
        reached = more
    wanted = [(0, *order) for order in permutations(range(1, 6), visits - 1)]
    assert sorted(reached) == sorted(order for order in wanted if not _wrong(setting, order))
    assert reached


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_one_microbatch_takes_its_best_way(seed: int) -> None:
    """With nodes that are taken at times, against all ways."""
    setting, dice = given_nodes((2, 2, 2, 1, 2), 4, 4, seed=seed), Random(seed)
    stages = any_places(setting, seed)
    busy = tuple((dice.randrange(9), start := dice.uniform(0, 15), start + dice.uniform(0, 3)) for _ in range(12))
    ways, closed = Map(setting, stages), Closed(frozenset({3}), frozenset({stages[2][0]}), busy)
    home = setting.home(stages, 0)
    shut = {*stages[3], stages[2][0]}
    free = [p for p in _paths(setting, stages) if p[0] == home and not shut & set(p)]
    way = ways.best(home, closed)
    assert way is not None
    assert way.end_s == pytest.approx(min(ways.timed(path, closed.by_node).end_s for path in free))
    assert all(end <= a or start >= b for node, a, b in busy for n, (start, end) in _spans(way) if n == node)


def _spans(way: object) -> list[tuple[int, tuple[float, float]]]:
    path = way.path  # type: ignore[attr-defined]
    return list(zip((*path, path[0], path[0], *path[::-1]), way.spans, strict=True))  # type: ignore[attr-defined]


def test_the_conflict_search_keeps_to_the_stages() -> None:
    """Every plan that it offers is within the rules and shares; its best one beats what greed finds."""
    setting = replace(given_nodes((2, 2, 2), 4, 2, seed=2), limit=(4,) * 6)
    stages = grouped(setting, range(6))
    stage_of = {node: stage for stage, nodes in enumerate(stages) for node in nodes}
    plans = [offer for offer in settled(Map(setting, stages)) if offer]
    assert 1 < len(plans) < 2000, "it ends by itself"
    for paths, rank in plans:
        assert sorted(rank) == [0, 1, 2, 3]
        visits = [tuple(stage_of[node] for node in path) for path in paths]
        assert not any(_wrong(setting, path) for path in visits)
        assert [sum(stage in path for path in visits) for stage in range(3)] == [4, 2, 2]
    best = min(dispatch(setting, paths, Order(rank)).step_s for paths, rank in plans)
    assert best < min(search(setting, stages, phases=[]).starts.values())


def test_the_same_seed_finds_the_same_plan() -> None:
    setting = given_nodes((3, 2, 2, 2), 9, 3)
    stages = any_places(setting, 4)
    first, again = (search(setting, stages, evaluations=300, seed=7) for _ in range(2))
    assert (first.paths, first.work, first.scores) == (again.paths, again.work, again.scores)
    assert not first.cut
    assert search(setting, stages, evaluations=10**6, seconds=0.05).cut


WRONG = {
    "visits": (lambda paths: (paths[0][:-1], *paths[1:]), "must begin at node"),
    "home": (lambda paths: ((paths[1][0], *paths[0][1:]), *paths[1:]), "must begin at node"),
    "twice": (lambda paths: ((*paths[0][:2], paths[0][1]), *paths[1:]), "different ones"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_paths_are_refused(name: str) -> None:
    setting = given_nodes((2, 2, 2, 2), 6, 3)
    stages = any_places(setting)
    plan = search(setting, stages, evaluations=20)
    broken, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        check_paths(setting, stages, broken(plan.paths), plan.orders)


def test_wrong_orders_are_refused() -> None:
    setting = given_nodes((2, 2, 2, 2), 6, 3, seed=3)
    stages = any_places(setting)
    plan = search(setting, stages, evaluations=20)
    paths, orders = plan.paths, plan.orders
    node = paths[0][1]
    for changed, message in (
        ((*orders[:node], orders[node][1:], *orders[node + 1 :]), "is missing"),
        ((*orders[:node], (*orders[node], orders[node][0]), *orders[node + 1 :]), "is extra"),
        ((*orders[:node], orders[node][::-1], *orders[node + 1 :]), "for ever|at once"),
    ):
        with pytest.raises(ValueError, match=message):
            check_paths(setting, stages, paths, changed)
    for stricter, message in (
        (replace(setting, limit=(1,) * 8), r"holds \d microbatches at once; its limit is 1"),
        (replace(setting, stage_limit=(6, 0, 6, 6)), r"stage 1 is visited by \d microbatches; its limit is 0"),
        (replace(setting, max_skip=0, visits=4), "leave out|nodes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_paths(stricter, stages, paths, orders)
    with pytest.raises(ValueError, match="each of 8 must be in one stage"):
        check_paths(setting, (*stages[:3], stages[2]), paths, orders)


def test_a_swap_that_helps_is_found() -> None:
    """0 and 1, 2 and 3 are far from each other."""
    far = [[0.0] * 4 for _ in range(4)]
    far[0][1] = far[1][0] = far[2][3] = far[3][2] = 5.0
    swapping = Setting((1,) * 4, 1, 4, (1.0,) * 4, (1,) * 4, tuple(map(tuple, far)))
    stages = ((0,), (1,), (2,), (3,))
    assert search(swapping, stages, evaluations=50).visits[0] == ((0, 0), (2, 2), (1, 1), (3, 3))
    straight = search(replace(swapping, max_swaps=0), stages, evaluations=50)
    assert straight.visits[0] == ((0, 0), (1, 1), (2, 2), (3, 3))


def test_places_keep_a_stage_near() -> None:
    """Two regions and two stages: the reduction across regions is not paid."""
    region = [0, 1, 0, 1, 0, 1]
    far = tuple(tuple(0.0 if region[a] == region[b] else 9.0 for b in range(6)) for a in range(6))
    setting = replace(given_nodes((3, 3), 3, 2), send_s=((0.1,) * 6,) * 6, reduce_s=far)
    found = choose_places(setting, evaluations=60)
    assert setting.reduction_s(found) == 0
    assert places_s(setting, found) <= places_s(setting, any_places(setting))
    assert without_skips(setting).visits == 2


def test_a_topology_is_a_setting() -> None:
    from trainsys.comm.topology import Topology
    from trainsys.config import ClusterConfig

    topology = Topology.from_config(ClusterConfig(nodes=2, ranks_per_node=2))
    setting = on_topology(topology, (2, 1, 1), 4, 2, 0.1, 2, 1e6, gradient_bytes=1e7)
    assert setting.send_s[0][1] == topology.transfer_s(0, 1, 1e6)
    assert setting.reduction_s(((0, 2), (1,), (3,))) == topology.transfer_s(0, 2, 1e7)


BAD = {
    "visits=7 must be 2 to 4": {"visits": 7},
    r"max_skip=0 is too low to visit 3 of 4 stages; raise max_skip to 1": {"max_skip": 0},
    r"room for 3 visits beyond stage 0 but 6 microbatches make 12": {"stage_limit": (6, 1, 1, 1)},
    r"stage_limit\[0\]=5: all 6 microbatches visit stage 0": {"stage_limit": (5, 6, 6, 6)},
    r"microbatches=1 leave some of the 2 nodes": {"microbatches": 1},
    r"limit=\(0, .*must have a number of at least 1 for each of 8 nodes": {"limit": (0,) * 8},
    r"compute_s names 8 nodes but replicas=\(2, 2, 2, 3\) need 9": {"replicas": (2, 2, 2, 3)},
    r"send_s from node 0 to 1 is -1 s": {"send_s": ((0.0, -1.0, *(0.0,) * 6), *((0.0,) * 8,) * 7)},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(given_nodes((2, 2, 2, 2), 6, 3), **BAD[message])
    with pytest.raises(ValueError, match="evaluations=0"):
        search(given_nodes((1, 1), 1, 2), ((0,), (1,)), evaluations=0)
