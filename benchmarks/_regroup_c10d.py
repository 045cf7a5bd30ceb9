"""What c10d offers a rank whose peer has died, as bodies of a `Gang`: its groups by `new_group`, or all of it anew.

c10d frees nobody: a neighbour of the dead meets an error, drops its groups, and the closed connections free the next.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from trainsys.testing.gang import HERE, Order, Ranks, Word, read


def again(rank: int, link: Connection, port: int, timeout_s: float, floats: int) -> None:
    """`destroy_process_group`, then `init_process_group` and every group anew."""
    _run(rank, link, port, timeout_s, floats, keeps_world=False)


def new_group(rank: int, link: Connection, port: int, timeout_s: float, floats: int) -> None:
    """`new_group` of the survivors beside a default group that has lost a member and is never used for traffic."""
    _run(rank, link, port, timeout_s, floats, keeps_world=True)


def _run(rank: int, link: Connection, port: int, timeout_s: float, floats: int, keeps_world: bool) -> None:
    import torch
    import torch.distributed as dist

    inbox: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=read, args=(link, inbox, lambda epoch: None), daemon=True).start()
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
    data, timeout, world = torch.zeros(floats), timedelta(seconds=timeout_s), tuple[int, ...]()
    link.send(HERE)
    while True:
        order = inbox.get()
        members = order.groups[0]
        if not (keeps_world and set(members) < set(world)):
            if dist.is_initialized():
                dist.destroy_process_group()
                gc.collect()
            prefix = dist.PrefixStore(f"c10d/{order.epoch}", store)
            dist.init_process_group(
                "gloo", store=prefix, rank=members.index(rank), world_size=len(members), timeout=timeout
            )
            world = members
        mine = _groups(order.groups, rank, world, timeout)
        built, one = time.perf_counter(), torch.ones(1)
        dist.all_reduce(one, group=mine[members])
        link.send(Word("stands", order.epoch, time.perf_counter(), built, {}, len(mine), one.item()))
        try:
            while inbox.empty():
                dist.all_reduce(data, group=mine[members])
        except RuntimeError:
            pass  # the traceback holds the group until here
        while mine:
            dist.destroy_process_group(mine.popitem()[1])
        if not keeps_world:
            dist.destroy_process_group()
        gc.collect()
        link.send(Word("free", order.epoch, time.perf_counter()))


def _groups(wanted: Sequence[Ranks], rank: int, world: Ranks, timeout: timedelta) -> dict[Ranks, Any]:
    """Every rank asks for all groups, in one order: else c10d counts their names apart, and they never meet."""
    import torch.distributed as dist

    found = {ranks: dist.new_group([world.index(r) for r in ranks], timeout=timeout) for ranks in wanted}
    return {ranks: group for ranks, group in found.items() if rank in ranks}
