"""Rounds: every move once, one peer per direction, within the budget, and a verifier that catches broken plans."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.space.strategies import NodeOf, changes
from trainsys.space.box import Box
from trainsys.space.coverage import LostError
from trainsys.space.layout import Layout
from trainsys.space.places import Place
from trainsys.space.rounds import Round, rounds, verify_rounds
from trainsys.space.tensor import Space
from trainsys.space.transition import Move, Transition, transition

Change = tuple[Space, Layout, Layout, tuple[int, ...], NodeOf]
Plan = dict[int, list[Round]]


def whole_plan(change: Change, budget: int) -> tuple[dict[int, Transition], Plan]:
    space, src, dst, alive, node_of = change
    ranks = sorted({*alive, *dst.ranks})
    try:
        shares = {r: transition(space, src, dst, r, alive, node_of) for r in ranks}
    except LostError:
        assume(False)
    return shares, {r: rounds(shares[r], ranks, budget) for r in ranks}


def all_to_all(n: int, budget: int = 100, moves_each: int = 2) -> Plan:
    """Every rank has something for every other."""

    def move(src: int, dst: int, k: int) -> Move:
        box = Box((k * 5,), (k * 5 + 5,))
        return Move(0, box, src, dst, Place(0, box), Place(0, box))

    every = [move(s, d, k) for s in range(n) for d in range(n) if s != d for k in range(moves_each)]
    shares = {
        r: Transition(r, (), tuple(m for m in every if m.src == r), tuple(m for m in every if m.dst == r))
        for r in range(n)
    }
    return {r: rounds(s, range(n), budget) for r, s in shares.items()}


def waits_in_a_circle(plan: Plan) -> bool:
    """Deadlock by graph: a round needs its predecessor, and each partner to have ended the round before theirs."""
    graph: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for rank, own in plan.items():
        for i, step in enumerate(own):
            needs = graph.setdefault((rank, i), set())
            if i:
                needs.add((rank, i - 1))
            for j, other in enumerate(plan[step.to]):
                if step.sends and other.source == rank and j:
                    needs.add((step.to, j - 1))
            for j, other in enumerate(plan[step.source]):
                if step.receives and other.to == rank and j:
                    needs.add((step.source, j - 1))
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError:
        return True
    return False


@settings(max_examples=60, deadline=None)
@given(changes(), st.integers(1, 60))
def test_each_move_once_within_the_budget(change: Change, budget: int) -> None:
    shares, plan = whole_plan(change, budget)
    verify_rounds(plan)
    assert not waits_in_a_circle(plan)
    for rank, own in plan.items():
        for way, mine in (("sends", shares[rank].sends), ("receives", shares[rank].receives)):
            planned = [m for step in own for part in getattr(step, way) for m in part]
            assert Counter(planned) == Counter(mine)
            for step in own:
                for part in getattr(step, way):
                    assert part, "an empty part"
                    assert len(part) == 1 or sum(m.box.numel for m in part) <= budget
        for step in own:
            assert all(m.src == rank and m.dst == step.to for part in step.sends for m in part)
            assert all(m.dst == rank and m.src == step.source for part in step.receives for m in part)
        assert len({s.to for s in own}) == len({s.source for s in own}) == len(own)


def test_parts_are_not_smaller_than_they_need_to_be() -> None:
    for budget, parts in ((4, 4), (5, 4), (9, 4), (10, 2), (15, 2), (20, 1)):
        plan = all_to_all(3, budget, moves_each=4)
        assert {len(step.sends) for own in plan.values() for step in own} == {parts}


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_all_to_all(n: int) -> None:
    plan = all_to_all(n)
    verify_rounds(plan)
    assert all(len(own) == n - 1 for own in plan.values())


def test_dropped_part_is_rejected() -> None:
    for way in ("sends", "receives"):
        plan = all_to_all(4, budget=5)
        step = plan[2][1]
        plan[2][1] = replace(step, **{way: getattr(step, way)[:-1]})
        with pytest.raises(AssertionError, match="disagree"):
            verify_rounds(plan)


def test_changed_peer_is_rejected() -> None:
    for field, peer in (("to", 3), ("source", 3)):
        plan = all_to_all(4)
        plan[1][0] = replace(plan[1][0], **{field: peer})
        with pytest.raises(AssertionError, match=r"disagree|two rounds"):
            verify_rounds(plan)


def test_reordered_moves_are_rejected() -> None:
    plan = all_to_all(3)
    (part,) = plan[0][0].sends
    plan[0][0] = replace(plan[0][0], sends=(part[::-1],))
    with pytest.raises(AssertionError, match="ranks 0 -> 1 disagree"):
        verify_rounds(plan)


def test_swapped_rounds_of_one_rank_deadlock() -> None:
    plan = all_to_all(3)
    plan[0].reverse()
    assert waits_in_a_circle(plan)
    with pytest.raises(AssertionError, match="wait for each other"):
        verify_rounds(plan)


@settings(max_examples=150)
@given(st.integers(2, 6), st.data())
def test_shuffled_rounds_are_judged_as_the_graph_does(n: int, data: st.DataObject) -> None:
    """The verifier rejects a shuffled plan exactly when the wait graph has a circle."""
    plan = all_to_all(n)
    for rank in data.draw(st.sets(st.integers(0, n - 1))):
        plan[rank] = data.draw(st.permutations(plan[rank]))
    expected = pytest.raises(AssertionError, match="wait for each other") if waits_in_a_circle(plan) else nullcontext()
    with expected:
        verify_rounds(plan)


@settings(max_examples=60)
@given(changes(), st.integers(1, 60), st.data())
def test_several_rounds_under_way_still_end(change: Change, budget: int, data: st.DataObject) -> None:
    """Ranks post ahead as far as each likes and wait for their oldest part: all of it is done in the end."""
    _, plan = whole_plan(change, budget)
    ahead = {rank: data.draw(st.integers(1, 5)) for rank in plan}
    assert done_with_windows(plan, ahead)


def test_several_rounds_in_another_order_can_hang() -> None:
    plan = all_to_all(3)
    plan[0].reverse()
    assert not done_with_windows(plan, dict.fromkeys(plan, 1))


def done_with_windows(plan: Plan, ahead: dict[int, int]) -> bool:
    """Play a plan: a message is through once both ends have posted it; a rank posts on when its oldest part is."""
    parts: dict[int, list[set[tuple[int, int, int]]]] = {}  # per rank: the (source, destination, number) of each part
    for rank, own in plan.items():
        parts[rank] = [
            {(rank, step.to, i) for _ in step.sends[i : i + 1]}
            | {(step.source, rank, i) for _ in step.receives[i : i + 1]}
            for step in own
            for i in range(max(len(step.sends), len(step.receives)))
        ]
    first = dict.fromkeys(plan, 0)
    while True:
        posted = Counter(m for r in plan for part in parts[r][: first[r] + ahead[r]] for m in part)
        moving = [r for r in plan if first[r] < len(parts[r]) and all(posted[m] == 2 for m in parts[r][first[r]])]
        if not moving:
            return all(first[r] == len(parts[r]) for r in plan)
        for r in moving:
            first[r] += 1
