"""Seats: equal parts, and only what must move does."""

from __future__ import annotations

from collections import Counter
from math import lcm

from hypothesis import given, settings
from hypothesis import strategies as st

from trainsys.space.seats import MAX_SEATS, default_seats, reseat


def owners(seats: tuple[int, ...], chunks: int) -> list[int]:
    return [seats[i % len(seats)] for i in range(chunks)]


@settings(max_examples=300)
@given(st.integers(1, 9), st.lists(st.tuples(st.sampled_from(["leave", "join"]), st.integers(0, 8)), max_size=5))
def test_every_edit_moves_the_least(replicas: int, edits: list[tuple[str, int]]) -> None:
    """A chain of edits: quotas stay equal, and each chunk that moves had to."""
    seats = default_seats(replicas)
    for kind, who in edits:
        if kind == "leave" and replicas == 1:
            continue
        gone = who % replicas if kind == "leave" else None
        kept = {old: new for new, old in enumerate(r for r in range(replicas) if r != gone)}
        count = replicas + (1 if kind == "join" else -1)
        new = reseat(seats, kept, count)
        shares = Counter(new)
        assert set(shares) == set(range(count))
        assert len(set(shares.values())) == 1, "unequal quotas"
        period = lcm(len(seats), count)
        if period <= MAX_SEATS:
            before, after = owners(seats, period), owners(new, period)
            moved = [(b, a) for b, a in zip(before, after, strict=True) if kept.get(b) != a]
            if gone is None:
                assert len(moved) == period // count, "a newcomer takes exactly its quota"
                assert all(a == count - 1 for _, a in moved)
                assert max(Counter(b for b, _ in moved).values()) == period // count // replicas
            else:
                assert len(moved) == period // replicas, "only the leaver's chunks move"
                assert all(b == gone for b, _ in moved)
                gained = Counter(a for _, a in moved)
                assert len(gained) == count
                assert max(gained.values()) == min(gained.values()), "the leaver's chunks are not spread evenly"
        seats, replicas = new, count


def test_several_at_once() -> None:
    """Two leave, one joins: what stays keeps its seats up to the new quota."""
    new = reseat((0, 1, 2, 3), {1: 0, 2: 1}, 3)
    assert Counter(new) == {0: 4, 1: 4, 2: 4}
    before, after = owners((0, 1, 2, 3), 12), owners(new, 12)
    assert all(a == b - 1 for b, a in zip(before, after, strict=True) if b in (1, 2))


def test_known_tables() -> None:
    assert reseat((0, 1, 2), {0: 0, 2: 1}, 2) == (0, 0, 1, 0, 1, 1)
    assert reseat((0, 1), {0: 0, 1: 1}, 2) == (0, 1)
    assert reseat((0, 1), {}, 3) == (0, 1, 2)


def test_table_is_remade_when_it_grows_too_long() -> None:
    seats = tuple(i % 11 for i in range(11 * 13 * 7))
    assert reseat(seats, {r: r for r in range(11)}, 17) == default_seats(17)
