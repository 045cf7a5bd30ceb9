"""Rank bodies for the tests of collectives: every result beside what plain arithmetic says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trainsys.comm.collectives import Collectives
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError, Group
from trainsys.comm.wires import Wires


def group_of(store: Any, rank: int, members: Sequence[int]) -> tuple[Communicator, Group]:
    comm = Communicator(store, rank, timeout_s=20.0)
    comm.reconfigure(0, [tuple(members)])
    return comm, comm.group(members)


def numbers(member: int, elements: int, dtype: torch.dtype) -> Tensor:
    """Small whole numbers, so that sums are exact in every dtype."""
    dice = torch.Generator().manual_seed(member)
    return torch.randint(0, 12, (elements,), generator=dice).to(dtype)


def right(collective: str, me: int, data: Sequence[Tensor]) -> Tensor:
    """What member `me` shall have of the members' `data`, which may be summed in any order."""
    n = len(data)
    if collective == "all_gather":
        return torch.cat(list(data))
    if collective == "all_to_all":
        return torch.cat([one.tensor_split(n)[me] for one in data])
    if collective == "all_scan":
        state = data[0]
        for one in data[1 : me + 1]:
            state = 2 * state + one
        return state
    total = torch.stack(list(data)).sum(0).to(data[0].dtype)
    return total if collective == "all_reduce" else total.tensor_split(n)[me]


def results(ours: Collectives, own: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "all_gather", ours.all_gather(own)
    yield "reduce_scatter", ours.reduce_scatter(own)
    yield "all_reduce", ours.all_reduce(own)
    yield "all_to_all", ours.all_to_all(own)
    yield "all_scan", ours.all_scan(own, 2)


def wrong(
    rank: int,
    world_size: int,
    store: Any,
    cases: Sequence[tuple[Wires, str]],
    sizes: Sequence[tuple[int, torch.dtype]],
) -> list[str]:
    """What is not as it should be. Members are numbered against the ranks, so that neither stands for the other."""
    members = tuple(reversed(range(world_size)))
    me, bad = members.index(rank), []
    comm, group = group_of(store, rank, members)
    for wires, method in cases:
        ours = Collectives(group, members, wires, method)
        for elements, dtype in sizes:
            data = [numbers(member, elements, dtype) for member in range(world_size)]
            own = data[me].clone()
            for collective, found in results(ours, own):
                shall = right(collective, me, data)
                if found.dtype != dtype or not torch.equal(found, shall) or not torch.equal(own, data[me]):
                    bad.append(f"{wires.name} {method} {collective} of {elements} {dtype}: {found} for {shall}")
    if not group.clean:
        bad.append("something is still under way")
    comm.close()
    return bad


def repeated(
    rank: int, world_size: int, store: Any, wires: Wires, methods: Sequence[str], elements: int
) -> dict[str, list[Tensor]]:
    """All-reduced float64 of no finite binary form, several times."""
    members = tuple(range(world_size))
    comm, group = group_of(store, rank, members)
    own = torch.rand(elements, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    found = {}
    for method in methods:
        ours = Collectives(group, members, wires, method)
        found[method] = [ours.all_reduce(own.view(-1, 1)) for _ in range(4)]
        scattered = ours.reduce_scatter(own)
        assert torch.equal(found[method][0].tensor_split(world_size)[rank], scattered)
    comm.close()
    return found


def left_alone(rank: int, world_size: int, store: Any, wires: Wires, collective: str) -> str:
    """The last rank stays away and then ends its connections; what the others are told."""
    members = tuple(range(world_size))
    comm, group = group_of(store, rank, members)
    ours, said = Collectives(group, members, wires, "ring"), ""
    ours.all_reduce(torch.ones(world_size))
    if rank == world_size - 1:
        group.abort()
    else:
        try:
            getattr(ours, collective)(torch.ones(60_000))
        except CommError as error:
            said = str(error)
    comm.abort(0)
    comm.close()
    return said
