"""Groups on real ranks: aborts free whoever is blocked, quiet groups are carried over, nothing leaks."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from tests.comm import bodies
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError
from trainsys.testing import RankPool


@pytest.mark.alone
@pytest.mark.parametrize("how", ["allreduce", "irecv", "expect"])
def test_abort_frees_blocked_ranks_and_keeps_quiet_groups(ranks: RankPool, how: str) -> None:
    results = ranks.run(bodies.abort_and_carry_on, 4, how)
    for rank, r in enumerate(results):
        assert (r["before"], r["pair"]) == (4.0, 1.0 if rank < 2 else 5.0)
        if rank != 3:
            assert r["outcome"].startswith("CommError")
            assert -0.2 < r["blocked_s"] < 1.0, "a peer's abort may free a rank just before its own does"
        assert r["check"] == "CommError"
        assert r["frozen"], "no operation may begin between the abort and the next generation"
        assert r["kept_pair"], "the pair's group was quiet on both members"
        assert not r["kept_big"], "the group of all was torn on three members"
        assert (r["after"], r["pair_after"]) == (4.0, 1.0 if rank < 2 else 5.0)
        assert r["names"] == sorted([f"e0/{'0,1' if rank < 2 else '2,3'}", "e1/0,1,2,3"])


@pytest.mark.alone
def test_reconfigure_without_its_peer_ends_at_the_abort(ranks: RankPool) -> None:
    first, second = ranks.run(bodies.missing_peer, 2)
    assert first["outcome"].startswith("CommError: generation 0 was aborted")
    assert 0 <= first["blocked_s"] < 1.0
    assert first["after"] == second["after"] == 2.0


def test_abort_knows_its_generation(ranks: RankPool) -> None:
    for r in ranks.run(bodies.old_generation, 2):
        assert r == {"sum": 2.0, "entered": False}


@pytest.mark.alone
def test_closed_connections_of_one_rank(ranks: RankPool) -> None:
    for r in ranks.run(bodies.death, 4)[1:]:
        assert r["outcome"].startswith("CommError")
        assert r["torn"]
        assert r["blocked_s"] < 1.0


@pytest.mark.alone
def test_abort_inside_a_message_half_sent(ranks: RankPool) -> None:
    """gloo tells nobody when a connection ends within a message; the timeout of these groups is 10 s."""
    for r in ranks.run(bodies.abort_inside_messages, 2, 8):
        assert r["torn"] == 8
        assert r["worst_s"] < 2.0


def test_thirty_generations_leak_nothing(ranks: RankPool) -> None:
    for counts in ranks.run(bodies.many_generations, 4, 34):
        for early, late in ((2, 32), (3, 33)):  # with and without the last rank
            for before, after in zip(counts[early], counts[late], strict=True):
                assert after <= before + 2, counts


def test_exchanges(ranks: RankPool) -> None:
    results = ranks.run(bodies.exchanges, 4)
    for rank, r in enumerate(results):
        assert r["gathered"] == [True] * 4
        assert r["order"]
        assert r["complete"] == [True] * 15
        assert r["told"] == ("from", 0)
        assert r["alone"] == ([3], 4)
        assert list(r["clean"]) == ["e0/0,1,2,3"]
        if rank:
            assert r["objects"] is None
    assert [o["rank"] for o in results[0]["objects"]] == [0, 1, 2, 3]
    assert len(results[0]["objects"][3]["pad"]) == 3000


def test_who_connects_at_once_owns_nothing_of_the_others(ranks: RankPool) -> None:
    for r in ranks.run(bodies.at_once, 3, 3):
        assert r["owned"] == [[2, 2, 1]] * 3
        assert r["shared"] == r["foreign"] == 0
        assert r["connected_meanwhile"] > 0
        assert r["after"] == [3.0] * 3
        assert r["echo"] == b"still"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), AssertionError()])
def test_whatever_goes_wrong_in_connecting_is_told(error: Exception) -> None:
    comm = Communicator(dist.HashStore(), 0)

    def address(ranks: tuple[int, ...]) -> str:
        raise error

    comm.address = address
    with pytest.raises(CommError, match=type(error).__name__ if not str(error) else "Too many open files"):
        comm.reconfigure(0, [(0, 1)])


def test_a_number_that_no_backend_takes_is_not_tried_again() -> None:
    """Who gets a `CommError` tries again, for ever."""
    comm = Communicator(dist.HashStore(), 0, timeout_s=1e300)
    with pytest.raises(OverflowError):
        comm.reconfigure(0, [(0, 1)])
