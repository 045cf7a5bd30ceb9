"""NCCL groups on real GPUs: an abort frees who is blocked, what is left is shrunk or built anew, a group goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from trainsys.comm.backends.backend import capabilities
from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError
from trainsys.testing import RankPool

GPUS = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
pytestmark = pytest.mark.alone


def total(comm: Communicator, ranks: tuple[int, ...]) -> float:
    x = torch.ones(1, device="cuda")
    comm.group(ranks).all_reduce(x)
    torch.cuda.synchronize()
    return x.item()


def lose_one(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """The last rank stays away from an all-reduce; the others are freed and go on without it."""
    torch.cuda.set_device(rank)
    everyone, fewer = tuple(range(world_size)), tuple(range(world_size - 1))
    comm = Communicator(store, rank, "nccl", timeout_s=30.0)
    comm.reconfigure(0, [everyone])
    result: dict[str, Any] = {"before": total(comm, everyone), "can": capabilities(comm.group(everyone).backend)}
    if rank == world_size - 1:
        comm.abort(0)
        comm.close()
        return result
    try:
        comm.group(everyone).all_reduce(torch.ones(1, device="cuda"))
        comm.abort(0)
        comm.check()
    except CommError:
        result["freed"] = True
    comm.reconfigure(1, [fewer])
    result["after"] = total(comm, fewer)
    comm.close()
    return result


@pytest.mark.skipif(GPUS < 1, reason="no CUDA device")
def test_one_rank_comes_and_goes(ranks: RankPool) -> None:
    assert ranks.run(alone, 1) == [(1.0, 1.0)]


def alone(rank: int, world_size: int, store: Any) -> tuple[float, float]:
    """Two generations of a group of one."""
    comm = Communicator(store, rank, "nccl", timeout_s=30.0)
    comm.reconfigure(0, [(0,)])
    first = total(comm, (0,))
    comm.abort(0)
    comm.reconfigure(1, [(0,)])
    second = total(comm, (0,))
    comm.close()
    return first, second


@pytest.mark.skipif(GPUS < 3, reason=f"needs 3 CUDA devices, here are {GPUS}")
def test_survivors_go_on(ranks: RankPool) -> None:
    *survivors, lost = ranks.run(lose_one, 3)
    assert lost["before"] == 3.0
    for result in survivors:
        assert (result["before"], result["after"], result["freed"]) == (3.0, 2.0, True)
