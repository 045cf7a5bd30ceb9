"""The ring of stamps: names of messages, what is open, what a step took."""

from __future__ import annotations

import threading

import pytest

from trainsys.comm.stamps import ALL, RECV, REDUCE, SAMPLES, SEND, Stamps


def test_messages_of_one_tag_are_counted_and_a_reset_counts_anew() -> None:
    stamps = Stamps()
    group = stamps.know("e0/0,1", (0, 1))
    for _ in range(2):
        stamps.begin(SEND, group, 1, 7, 100)
    stamps.begin(RECV, group, 1, 7, 100)
    names = sorted(stamps.doing().sent[1])
    assert names == [(group | 7, 0), (group | 7, 1)]
    stamps.reset()
    assert stamps.doing().sent == {}
    stamps.begin(SEND, group, 1, 7, 100)
    assert list(stamps.doing().sent[1]) == [(group | 7, 0)]


def test_both_ends_call_a_group_alike() -> None:
    assert Stamps().know("e3/2,5", (2, 5)) == Stamps().know("e3/2,5", (2, 5)) != Stamps().know("e4/2,5", (2, 5))


def test_a_step_tells_of_what_ended_in_it() -> None:
    stamps = Stamps()
    group = stamps.know("e0/0,1", (0, 1))
    done, still = (stamps.begin(RECV, group, 1, tag, 64) for tag in (1, 2))
    stamps.begin(SEND, group, 1, 3, 64)
    stamps.end(done)
    stamps.computed("F", 0.5)
    told = stamps.take_step()
    assert [m[:2] for m in told.got[1]] == [(group | 1, 0)]
    assert told.got[1][0][3] >= told.got[1][0][2]
    assert [m[:2] for m in told.sent[1]] == [(group | 3, 0)]
    assert told.counts == {1: (1, 64)}
    assert told.compute == {"F": (0.5,)}
    stamps.end(still)
    again = stamps.take_step()
    assert (again.got, again.sent, again.compute) == ({}, {}, {})


def test_an_overwritten_operation_ends_nobody_elses() -> None:
    stamps = Stamps(4)
    group = stamps.know("e0/0,1", (0, 1))
    old = stamps.begin(RECV, group, 1, 0, 1)
    for tag in range(1, 5):
        stamps.begin(RECV, group, 1, tag, 1)
    stamps.end(old)
    with stamps.waiting():
        assert [a.name for a in stamps.doing().awaited] == [(group | tag, 0) for tag in (4, 3, 2, 1)]


def test_only_the_main_threads_waits_are_told() -> None:
    stamps = Stamps()
    group = stamps.know("e0/0,1,2", (0, 1, 2))
    number = stamps.begin(REDUCE, group, ALL, 0, 4)
    stamps.enter("F")
    seen = []

    def elsewhere() -> None:
        with stamps.waiting(number):
            seen.append(stamps.doing().what)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with stamps.waiting(number):
        doing = stamps.doing()
    assert seen == ["F"]
    assert (doing.what, sorted(a.peer for a in doing.awaited)) == ("wait", [0, 1, 2])
    assert stamps.doing().what == "F"
    assert stamps.blocked_s > 0


def test_a_long_step_ships_samples_that_both_ends_choose_alike() -> None:
    stamps = Stamps()
    group = stamps.know("e0/0,1", (0, 1))
    for tag in range(3 * SAMPLES):
        stamps.end(stamps.begin(RECV, group, 1, 3 * SAMPLES - tag, 10))
        stamps.begin(SEND, group, 1, tag + 1, 10)
    told = stamps.take_step()
    assert [m[:2] for m in told.got[1]] == [m[:2] for m in told.sent[1]]
    assert told.counts[1] == (3 * SAMPLES, pytest.approx(30 * SAMPLES))
