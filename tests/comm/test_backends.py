"""How a group gets its backend's object: recorded calls of fakes that can shrink or reconfigure, as torch's will."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo

from trainsys.comm.backends import BACKENDS
from trainsys.comm.backends.backend import Backend, capabilities
from trainsys.comm.backends.connect import Donor, Place, connect

FIVE_S = timedelta(seconds=5)


class Fake:
    """c10d's object, with what it was asked for."""

    def __init__(self, index: int, fails: int = 0, **can: bool) -> None:
        self.calls: list[Any] = []
        self.index, self.fails = index, fails
        self.supports_shrinking, self.supports_reconfigure = can.get("shrinks", False), can.get("reconfigures", False)

    def shrink(self, positions: list[int], flags: int) -> tuple[str, int]:
        self.calls.append(("shrink", positions, flags))
        return "shrunk", self.index

    def get_reconfigure_handle(self) -> str:
        return f"handle-{id(self)}"

    def reconfigure(self, options: Any) -> Any:
        self.calls.append((options.uuid, options.handles, options.timeout))
        return self

    def wait(self) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("a peer went")


def backend(deferred: bool = False, may_shrink: bool = False) -> Backend:
    def options(timeout: timedelta, address: str) -> Any:
        return SimpleNamespace(enable_reconfigure=False) if deferred else SimpleNamespace()

    def build(store: Any, index: int, size: int, options: Any) -> Any:
        return Fake(index, reconfigures=True) if deferred else ("built", index)

    return Backend("fake", True, options, build, lambda built: None, may_shrink)


def meet(kind: Backend, uid: str, ranks: tuple[int, ...], donors: dict[int, list[Donor]]) -> list[Any]:
    """What each of `ranks` gets."""
    store = dist.HashStore()
    places = [Place(dist.PrefixStore(uid, store), uid, ranks, i, FIVE_S) for i in range(len(ranks))]
    with ThreadPoolExecutor(len(ranks)) as threads:
        return list(threads.map(lambda place: connect(kind, place, donors.get(ranks[place.index], [])), places))


def test_gloo_of_this_torch_is_built_anew() -> None:
    built = BACKENDS["gloo"].build(dist.HashStore(), 0, 1, BACKENDS["gloo"].options(FIVE_S, "127.0.0.1"))
    assert isinstance(built, ProcessGroupGloo)
    can = capabilities(built)
    assert not can.shrinks
    assert can.reconfigures == hasattr(built, "get_reconfigure_handle")


def test_nccl_says_where_it_is_missing() -> None:
    if dist.is_nccl_available():
        pytest.skip("this torch has NCCL")
    with pytest.raises(RuntimeError, match=r"without NCCL; set cluster\.device\.backend=gloo"):
        BACKENDS["nccl"].options(FIVE_S, "")


def test_members_of_one_larger_group_shrink_it() -> None:
    fakes = {rank: Fake(rank, shrinks=True) for rank in (0, 1, 3)}
    donors = {rank: [Donor("e0/0,1,2,3", (0, 1, 2, 3), fake)] for rank, fake in fakes.items()}
    assert meet(backend(may_shrink=True), "e1/0,1,3", (0, 1, 3), donors) == [("shrunk", r) for r in (0, 1, 3)]
    assert all(fake.calls == [("shrink", [2], 1)] for fake in fakes.values())


@pytest.mark.parametrize(
    "others",
    [
        [],  # a fresh process in the place of a dead one
        [Donor("e1/0,1,3", (0, 1, 2, 3), Fake(3, shrinks=True))],  # entered a generation that failed elsewhere
        [Donor("e0/0,1,2,3", (0, 1, 2, 3), Fake(3))],  # cannot
        [Donor("e0/0,3,1,2", (0, 3, 1, 2), Fake(3, shrinks=True))],  # would be left in another order
    ],
)
def test_one_member_that_cannot_shrink_makes_all_build(others: list[Donor]) -> None:
    fake = Fake(0, shrinks=True)
    same = [Donor("e0/0,1,2,3", (0, 1, 2, 3), fake)]
    found = meet(backend(may_shrink=True), "e1/0,1,3", (0, 1, 3), {0: same, 1: same, 3: others})
    assert found == [("built", i) for i in range(3)]
    assert fake.calls == []


def test_groups_reconfigure_old_objects_with_fresh_ones() -> None:
    old = Fake(0, reconfigures=True)
    first, second = meet(backend(deferred=True), "e1/0,1", (0, 1), {0: [Donor("e0/0,2", (0, 2), old)]})
    assert first is old, "what a lost group leaves is used again"
    handles = [first.get_reconfigure_handle(), second.get_reconfigure_handle()]
    assert first.calls == second.calls
    assert [call[1:] for call in first.calls] == [(handles, FIVE_S)]
    assert 0 <= first.calls[0][0] < 1 << 63


def test_a_reconfigure_that_fails_is_repeated_under_a_fresh_uuid() -> None:
    old = Fake(0, fails=1, reconfigures=True)
    donors = {0: [Donor("e0/0,2", (0, 2), old)]}
    with pytest.raises(RuntimeError, match="a peer went"):
        meet(backend(deferred=True), "e1/0,1", (0, 1), donors)
    assert meet(backend(deferred=True), "e2/0,1", (0, 1), donors)[0] is old
    assert len({call[0] for call in old.calls}) == 2
