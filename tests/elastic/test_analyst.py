"""The analyst on made-up stamps: every class of trouble at its place, and nothing where there is none."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest

from trainsys.comm.stamps import ALL, Awaited, Doing, StepTimes
from trainsys.elastic.analyst.analyst import Analyst
from trainsys.elastic.analyst.hang import Told, find_hang
from trainsys.elastic.analyst.slow import Place
from trainsys.elastic.analyst.verdict import Finding

RANKS = range(8)  # pp2·dp4 on four nodes: stage rank % 2, node rank // 2
PLACES = {rank: Place(rank % 2, rank // 2, 1.0 + rank % 2) for rank in RANKS}
STEP_S, F_S, WAY_S = 0.05, 0.002, 0.0002


def steps(
    analyst: Analyst, count: int, slow: Mapping[int, float] = {}, late: Mapping[tuple[int, int], float] = {},
    first: int = 0, seed: int = 0, everybody: float = 1.0, clocks: Mapping[int, float] = {},
) -> list[Finding]:  # fmt: skip
    """Feed steps with the noise of a busy machine, in which slow ranks also make others wait.

    Args:
        clocks: rank -> seconds by which its clock is taken for later than it is.
    """
    dice, found = random.Random(seed), list[Finding]()
    for step in range(first, first + count):
        times = {rank: measured(dice, rank, slow.get(rank, 1.0) * everybody, late) for rank in RANKS}
        found += analyst.step(step, times, STEP_S, {rank: clocks.get(rank, 0.0) - rank for rank in RANKS})
    return found


def measured(dice: random.Random, rank: int, slow: float, late: Mapping[tuple[int, int], float]) -> StepTimes:
    """What one rank would have stamped; its clock is `rank` seconds ahead."""
    work = slow * F_S * PLACES[rank].work
    f_s = tuple(work + dice.expovariate(2000) for _ in range(4))
    b_s = tuple(2 * work + dice.expovariate(2000) for _ in range(4))
    peers = [peer for peer in RANKS if peer != rank]
    sent = {peer: tuple((tag, 0, rank + 0.001 * tag) for tag in range(4)) for peer in peers}
    got = {
        peer: tuple(
            (tag, 0, rank + posted, rank + max(posted, 0.001 * tag) + WAY_S + late.get((peer, rank), 0.0)
             + dice.expovariate(2000), 4096, True)
            for tag in range(4)
            for posted in (dice.uniform(0, 0.02),)
        )
        for peer in peers
    }  # fmt: skip
    return StepTimes({"F": f_s, "B": b_s}, sent, got, dict.fromkeys(peers, (4, 4 * 4096)))


def fresh(warm: int = 12) -> Analyst:
    analyst = Analyst(1.2, 3)
    analyst.enter(PLACES)
    assert steps(analyst, warm) == []
    return analyst


@pytest.mark.parametrize("factor", [1.3, 2.0, 5.0])
def test_a_slow_rank_is_named_in_three_steps_and_when_it_is_over(factor: float) -> None:
    analyst = fresh()
    (found,) = steps(analyst, 5, {3: factor}, first=12, seed=1)
    assert (found.kind, found.place, found.since_step) == ("slow rank", (3,), 12)
    assert found.factor == pytest.approx(factor, rel=0.15)
    assert analyst.slow.keys() == {3}
    assert str(found).startswith("slow rank 3: backward takes ")
    assert " times that of rank 1 since step 12" in str(found)
    (over,) = steps(analyst, 6, first=17, seed=2)
    assert (over.over, over.place) == (True, (3,))
    assert analyst.slow == {}


def test_what_slows_everybody_is_nobodys_fault() -> None:
    assert steps(fresh(), 20, everybody=2.0, first=12, seed=3) == []


def test_a_rank_that_was_never_as_fast_as_its_equals_is_slow() -> None:
    analyst = Analyst(1.2, 3)
    analyst.enter(PLACES)
    (found,) = steps(analyst, 20, {5: 1.6})
    assert (found.kind, found.place) == ("slow rank", (5,))


def test_a_past_outlives_a_change_of_layout() -> None:
    analyst = fresh()
    analyst.enter({**PLACES, 2: Place(1, 1, 2.0), 3: Place(0, 1, 1.0)})
    swapped = {2: 2.0, 3: 0.5}  # what they have to do now
    assert steps(analyst, 12, swapped, first=12, seed=4) == []
    assert [f.place for f in steps(analyst, 5, swapped | {2: 4.0}, first=24, seed=5)] == [(2,)]


def test_a_slow_link_is_a_cell_of_the_matrix() -> None:
    analyst = fresh()
    (found,) = steps(analyst, 5, late={(2, 5): 0.006}, first=12, seed=6)
    assert (found.kind, found.place, found.since_step) == ("slow link", (2, 5), 12)
    assert str(found).startswith("slow link 2→5: messages of 4 KiB take ")
    assert [f.over for f in steps(analyst, 6, first=17, seed=7)] == [True]


def test_a_link_on_which_messages_seemed_to_take_no_time_can_be_slow() -> None:
    """The sender's clock is taken for later than it is, by more than a message takes: it seems to be there at once."""
    analyst, ahead = Analyst(1.2, 3), {2: 0.004}
    analyst.enter(PLACES)
    assert steps(analyst, 12, clocks=ahead) == []
    (found,) = steps(analyst, 5, late={(2, 5): 0.009}, first=12, seed=6, clocks=ahead)
    assert (found.kind, found.place, found.since_step) == ("slow link", (2, 5), 12)
    assert [f.over for f in steps(analyst, 6, first=17, seed=7, clocks=ahead)] == [True]


def test_a_slow_node_is_its_rows_and_columns() -> None:
    late = {(a, b): 0.006 for a in RANKS for b in RANKS if (a // 2 == 1) != (b // 2 == 1)}
    (found,) = steps(fresh(), 6, late=late, first=12, seed=8)
    assert (found.kind, found.place, found.where) == ("slow node", (1,), "node 1")


def test_ten_thousand_healthy_steps_of_a_rank_are_quiet() -> None:
    analyst = fresh()
    assert steps(analyst, 1250, first=12, seed=9) == []  # 8 ranks and 56 links each


def computing(what: str = "F", for_s: float = 0.1, sent: dict[int, dict[tuple[int, int], float]] | None = None) -> Told:
    return Told(Doing(what, for_s, 0.0, (), sent or {}), 0.01)


def waiting(
    peers: Sequence[int], for_s: float, kind: str = "recv",
    sent: dict[int, dict[tuple[int, int], float]] | None = None,
) -> Told:  # fmt: skip
    awaited = tuple(Awaited(peer, (peer, 0), kind, for_s) for peer in peers)
    return Told(Doing("wait", for_s, 0.0, awaited, sent or {}), 0.01)


def hang(told: Mapping[int, Told]) -> Finding | None:
    return find_hang(told, 1.0, 5.0, 41)


def test_the_root_of_all_waiting_hangs_in_its_own_work() -> None:
    told = {0: waiting([1], 1.2), 1: waiting([2], 1.3), 2: computing("B", 1.4), 3: waiting([0], 1.0)}
    found = hang(told)
    assert found is not None
    assert (found.kind, found.place) == ("computation hang", (2,))
    assert str(found) == "computation hang at rank 2: in a backward for 1.40 s at step 41; 3 others wait for it"


def test_a_message_that_was_sent_and_is_not_there_hangs_on_its_link() -> None:
    told = {0: waiting([1], 1.2), 1: waiting([0], 1.5, sent={0: {(1, 0): 1.3}})}
    found = hang(told)
    assert found is not None
    assert (found.kind, found.place, found.where) == ("communication hang", (1, 0), "link 1→0")


def test_nobody_is_named_too_early_or_without_evidence() -> None:
    assert hang({0: waiting([1], 1.2), 1: computing("F", 0.5)}) is None  # late, and at work
    assert hang({0: waiting([1], 1.2), 1: waiting([2], 1.1, sent={0: {(1, 0): 0.2}}), 2: computing("F", 0.9)}) is None
    assert hang({0: waiting([1], 1.2), 1: computing("verdict", 1.2)}) is None
    stale = Told(Doing("F", 2.0), 6.0)
    assert hang({0: waiting([1], 1.2), 1: stale}) is None  # its heart stopped: another limit


def test_who_has_begun_a_group_operation_is_not_waited_for() -> None:
    whole = {ALL: {(1, 0): 1.2, (2, 0): 1.2, (0, 0): 1.2}}
    told = {
        0: waiting([1, 2], 1.2, "all-reduce", whole),
        1: waiting([2], 1.2, "all-reduce", whole),
        2: computing("F", 1.5),
    }
    found = hang(told)
    assert found is not None
    assert found.place == (2,)
    assert "2 others wait for it" in str(found)
