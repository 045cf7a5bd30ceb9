"""A rank that joins where the best layout is the present one stands by; nobody pauses for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tiny import tiny

from trainsys.config import load
from trainsys.elastic.book import Book
from trainsys.elastic.foresight import Foresight
from trainsys.elastic.manager import Manager
from trainsys.elastic.member import Member
from trainsys.elastic.messages import Fault, Leaving, Prepared, Proposal, Verdict
from trainsys.elastic.phase import Phase
from trainsys.parallel.step import Report
from trainsys.planner.choose import choose
from trainsys.planner.device import rate
from trainsys.planner.memory import WAITING, preparing_gib
from trainsys.planner.predict import worst_memory
from trainsys.planner.stages import Stages


class Told:
    """A link that keeps what is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def send(self, message: Any) -> None:
        self.messages.append(message)


class Nobody:
    """An outbox that nobody reads."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


def running(folder: Path, *overrides: str, ranks: int) -> tuple[Manager, dict[int, Told]]:
    """A manager in the middle of a run on its first layout."""
    config = load(tiny(folder, *overrides))
    flops = rate(config.cluster, ranks)
    manager = Manager(config, ranks, cast(Any, Nobody()), Book(rate=flops, next_rank=ranks))
    told = {rank: Told() for rank in range(ranks)}
    for rank in told:
        manager.members[rank] = Member(rank, rank // 2, 0, cast(Any, told[rank]))
    nodes = {rank: rank // 2 for rank in told}
    manager.parallel, manager.layout = choose(config, None, manager.parallel, nodes, flops)
    manager.epoch, manager.phase = 0, Phase.RUNNING
    return manager, told


def join_and_step(manager: Manager, told: dict[int, Told], rank: int) -> Verdict:
    """A fresh rank says hello, and a step is proposed by all of the layout."""
    told[rank] = Told()
    manager._joined(Member(rank, rank // 2, 0, cast(Any, told[rank])))
    return step(manager, told)


@pytest.mark.parametrize("zero", [0, 1])
def test_half_a_team_stands_by_until_the_other_half_comes(zero: int, tmp_path: Path) -> None:
    overrides = ("parallel.dp=1", "parallel.tp=2", "parallel.pp=1", f"parallel.zero={zero}")
    manager, told = running(tmp_path, *overrides, ranks=2)
    assert join_and_step(manager, told, 2).change == -1
    assert (manager.phase, manager.epoch, manager.step) == (Phase.RUNNING, 0, 1)
    assert not told[2].messages
    order = join_and_step(manager, told, 3).prepare  # with the one that stands by it is a team
    assert order is not None and order.epoch == 1
    assert set(order.dst.ranks) == {0, 1, 2, 3} == set(order.participants)
    assert manager.phase is Phase.RUNNING
    assert [type(m) for m in told[2].messages] == [Verdict]


def test_a_rank_that_is_of_use_is_taken_in(tmp_path: Path) -> None:
    overrides = ("parallel.dp=2", "parallel.pp=1", "cluster.shared_cores=false", "elastic.move=pause")
    manager, told = running(tmp_path, *overrides, ranks=2)
    assert join_and_step(manager, told, 2).change == 1
    assert manager.phase is Phase.QUIESCING
    assert [type(m) for m in told[2].messages] == [Fault]


@pytest.mark.parametrize("room", [0.99, 1.01])
def test_a_layout_is_made_beside_the_steps_where_there_is_room(room: float, tmp_path: Path) -> None:
    overrides = ("parallel.dp=2", "parallel.pp=1", "cluster.shared_cores=false")
    config = load(tiny(tmp_path, *overrides))
    needs = preparing_gib(worst_memory(config, Stages.of(config.model, config.parallel)))
    limit = f"cluster.device.memory_gib={room * needs}"
    manager, told = running(tmp_path, *overrides, limit, ranks=2)
    verdict = join_and_step(manager, told, 2)
    assert (verdict.prepare is not None) == (room > 1)
    assert (verdict.change == 1) == (room < 1)


def step(manager: Manager, told: dict[int, Told]) -> Verdict:
    """A step is proposed by all of the layout."""
    assert manager.layout is not None
    for member in manager.layout.ranks:
        manager._handle(member, Proposal(manager.epoch, Report(manager.step)))
    return next(m for m in reversed(told[manager.layout.ranks[0]].messages) if isinstance(m, Verdict))


@pytest.mark.parametrize("way", ["auto", "beside"])
@pytest.mark.parametrize("who", [1, 2])  # of the layout; the one that joins
def test_who_has_notice_does_not_wait_for_a_preparation(who: int, way: str, tmp_path: Path) -> None:
    overrides = ("parallel.dp=2", "parallel.pp=1", "cluster.shared_cores=false", f"elastic.move={way}")
    manager, told = running(tmp_path, *overrides, ranks=2)
    assert join_and_step(manager, told, 2).prepare is not None
    manager._handle(who, Leaving())
    assert (step(manager, told).change == 1) == (way == "auto")
    assert (manager.phase is Phase.QUIESCING) == (way == "auto")
    assert any(isinstance(m, Fault) for m in told[2].messages) == (way == "auto")


@pytest.mark.parametrize("why", ["ready", "failed", "late"])
def test_when_a_preparation_ends(why: str, tmp_path: Path) -> None:
    manager, told = running(tmp_path, "parallel.dp=2", "parallel.pp=1", "cluster.shared_cores=false", ranks=2)
    assert join_and_step(manager, told, 2).prepare is not None
    for rank in range(3 if why == "ready" else 0):
        manager._handle(rank, Prepared(1))
    if why == "failed":
        manager._handle(0, Prepared(1, "no memory"))
    for _ in range(WAITING - 1 if why == "late" else 0):
        assert step(manager, told).change == -1
    assert step(manager, told).change == 1
    assert (manager._preparing.order is None) == (why == "failed")


def test_room_is_not_reckoned_where_the_cluster_has_no_such_ranks(tmp_path: Path) -> None:
    others = "cluster.other_devices=[{nodes: 1, device: {memory_gib: 3}}]"
    config = load(tiny(tmp_path, others, "cluster.shared_cores=false"))
    many = replace(config.parallel, dp=2 * config.parallel.dp)
    assert Foresight(config, rate(config.cluster, 4)).has_room(config.parallel)
    assert not Foresight(config, rate(config.cluster, 4)).has_room(many)
