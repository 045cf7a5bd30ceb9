"""Rank bodies for the communication tests."""

from __future__ import annotations

import gc
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch._C._distributed_c10d import TCPStore

from trainsys.comm.attempt import StoreClient
from trainsys.comm.communicator import Communicator
from trainsys.comm.disposal import settle
from trainsys.comm.exchange import all_gather_regions, exchange
from trainsys.comm.group import CommError, Group
from trainsys.comm.objects import broadcast_object, gather_objects
from trainsys.comm.sockets import Socket


def total(group: Group, value: float) -> float:
    x = torch.tensor([value])
    group.all_reduce(x)
    return x.item()


def meet(store: Any, name: str, rank: int, world_size: int) -> None:
    """Wait until all ranks are here, whatever the groups' state."""
    store.set(f"{name}/{rank}", b"here")
    store.wait([f"{name}/{r}" for r in range(world_size)])


def blocked_s(comm: Communicator, epoch: int, operation: Callable[[], Any], after_s: float = 0.3) -> tuple[float, str]:
    """Seconds from the abort, given by another thread, until `operation` raises; and what it raised."""
    aborted = []

    def abort() -> None:
        time.sleep(after_s)
        aborted.append(time.perf_counter())
        comm.abort(epoch)

    thread = threading.Thread(target=abort)
    thread.start()
    try:
        operation()
        outcome = "returned"
    except CommError as error:
        outcome = f"CommError: {error}"
    end = time.perf_counter()
    thread.join()
    return end - aborted[0], outcome


def agreed(store: Any, name: str, comm: Communicator, rank: int, world_size: int) -> list[str]:
    """Names of the groups that all their members call clean, with equal counts."""
    store.set(f"{name}/{rank}", repr(comm.clean()).encode())
    clean = [eval(store.get(f"{name}/{r}")) for r in range(world_size)]
    return [
        group
        for group, seq in clean[rank].items()
        if all(clean[r].get(group) == seq for r in map(int, group.partition("/")[2].split(",")))
    ]


def abort_and_carry_on(rank: int, world_size: int, store: Any, how: str) -> dict[str, Any]:
    """The last rank stays away from an operation of all; after the abort the pairs live on, the torn group is new."""
    everyone, pair = tuple(range(world_size)), (rank // 2 * 2, rank // 2 * 2 + 1)
    pairs = [(0, 1), (2, 3)]
    comm = Communicator(store, rank, timeout_s=30.0)
    comm.reconfigure(0, [everyone, *pairs])
    big, small = comm.group(everyone), comm.group(pair)
    result: dict[str, Any] = {"before": total(big, 1.0), "pair": total(small, rank)}
    absent = world_size - 1

    def operation() -> None:
        if how == "allreduce":
            total(big, 1.0)
        elif how == "expect":
            big.take(big.expect(big.irecv(torch.zeros(4), absent, 0)))
        else:
            big.wait(big.irecv(torch.zeros(4), absent, 0))

    if rank != absent:
        result["blocked_s"], result["outcome"] = blocked_s(comm, 0, operation)
    else:
        time.sleep(0.3)
        comm.abort(0)
    try:
        comm.check()
        result["check"] = "passed"
    except CommError:
        result["check"] = "CommError"
    try:
        total(small, 1.0)
        result["frozen"] = False
    except CommError:
        result["frozen"] = True
    keep = agreed(store, "clean", comm, rank, world_size)
    comm.reconfigure(1, [everyone, *pairs], keep)
    result["kept_pair"], result["kept_big"] = comm.group(pair) is small, comm.group(everyone) is big
    result["after"], result["pair_after"] = total(comm.group(everyone), 1.0), total(comm.group(pair), rank)
    result["names"] = sorted(comm.clean())
    comm.close()
    return result


def missing_peer(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """Rank 1 does not come to generation 0; after the abort both meet in generation 1."""
    everyone = tuple(range(world_size))
    comm = Communicator(store, rank, timeout_s=10.0)
    result: dict[str, Any] = {}
    if rank == 0:
        result["blocked_s"], result["outcome"] = blocked_s(comm, 0, lambda: comm.reconfigure(0, [everyone]))
    comm.reconfigure(1, [everyone])
    result["after"] = total(comm.group(everyone), 1.0)
    comm.close()
    return result


def old_generation(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """An abort of an earlier generation touches nothing; a generation aborted beforehand is not entered."""
    everyone = tuple(range(world_size))
    comm = Communicator(store, rank, timeout_s=10.0)
    comm.reconfigure(5, [everyone])
    comm.abort(4)
    comm.check()
    result: dict[str, Any] = {"sum": total(comm.group(everyone), 1.0)}
    meet(store, "old", rank, world_size)
    comm.abort(6)
    try:
        comm.reconfigure(6, [everyone])
        result["entered"] = True
    except CommError:
        result["entered"] = False
    comm.close()
    comm.abort(9)  # a late fault after the end must not fail
    return result


def many_generations(rank: int, world_size: int, store: Any, count: int) -> dict[int, tuple[int, int]]:
    """(open files, threads) after some of `count` edits; the last rank leaves and returns by turns."""
    everyone, fewer = tuple(range(world_size)), tuple(range(world_size - 1))
    comm = Communicator(store, rank, timeout_s=10.0)
    counts = {}
    for epoch in range(count):
        comm.reconfigure(epoch, [everyone if epoch % 2 == 0 else fewer, (0, 1)])
        for ranks in ((everyone if epoch % 2 == 0 else fewer), (0, 1)):
            if rank in ranks:
                assert total(comm.group(ranks), 1.0) == len(ranks)
        meet(store, f"many{epoch}", rank, world_size)
        if epoch in (2, 3) or epoch >= count - 2:
            gc.collect()
            assert settle(), "what has been let go goes"
            counts[epoch] = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
            meet(store, f"counted{epoch}", rank, world_size)
    comm.close()
    return counts


def exchanges(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """Gathers of uneven and empty regions, an exchange of many tagged messages, objects."""
    everyone = tuple(range(world_size))
    comm = Communicator(store, rank, timeout_s=10.0)
    comm.reconfigure(0, [everyone])
    group = comm.group(everyone)
    gathered = []
    for sizes in ([3, 1, 4, 2], [0, 5, 0, 7], [0, 0, 0, 1], [200_000, 1, 0, 99_999]):
        edges = [sum(sizes[:r]) for r in range(world_size + 1)]
        regions = {r: (edges[r], edges[r + 1]) for r in everyone}
        flat = torch.full((edges[-1],), -1.0)
        flat[slice(*regions[rank])] = torch.arange(*regions[rank]).float()
        all_gather_regions(group, flat, regions)
        gathered.append(torch.equal(flat, torch.arange(edges[-1]).float()))
    peers = [r for r in everyone if r != rank]
    sends = [(p, torch.tensor([100.0 * rank + 10 * p + tag]), tag) for tag in range(5) for p in peers]
    inbox = [(p, torch.zeros(1), tag) for p in reversed(peers) for tag in reversed(range(5))]
    order: list[int] = []
    complete: list[bool] = []

    def arrived(i: int) -> None:
        order.append(i)
        peer, buffer, tag = inbox[i]
        complete.append(buffer.item() == 100 * peer + 10 * rank + tag)

    exchange(group, sends, inbox, arrived)
    exchange(group, [], [])
    objects = gather_objects(group, {"rank": rank, "pad": "x" * 1000 * rank})
    told = broadcast_object(group, ("from", rank))
    clean = comm.clean()
    comm.close()
    return {
        "gathered": gathered, "order": order == list(range(len(inbox))), "complete": complete, "objects": objects,
        "told": told, "alone": (gather_objects(None, 3), broadcast_object(None, 4)), "clean": clean,
    }  # fmt: skip


def death(rank: int, world_size: int, store: Any) -> dict[str, Any]:
    """A peer closes its connections inside an operation of all: each survivor gets away once told."""
    everyone = tuple(range(world_size))
    comm = Communicator(store, rank, timeout_s=30.0)
    comm.reconfigure(0, [everyone])
    group = comm.group(everyone)
    total(group, 1.0)
    if rank == 0:
        group.abort()
        return {}
    seconds, outcome = blocked_s(comm, 0, lambda: total(group, 1.0))
    comm.close()
    return {"blocked_s": seconds, "outcome": outcome, "torn": group.torn}


def abort_inside_messages(rank: int, world_size: int, store: Any, count: int) -> dict[str, float]:
    """Aborts that fall in the middle of large messages, at another place each time; the longest wait after one."""
    pair = tuple(range(world_size))
    comm = Communicator(store, rank, timeout_s=10.0)
    outgoing, incoming = torch.zeros(16 << 20), torch.zeros(16 << 20)
    worst, torn = 0.0, 0
    for epoch in range(count):
        comm.reconfigure(epoch, [pair])
        group, peer = comm.group(pair), 1 - rank

        def operation(group: Group = group, peer: int = peer) -> None:
            for _ in range(50):
                exchange(group, [(peer, outgoing, 0)], [(peer, incoming, 0)])

        seconds, outcome = blocked_s(comm, epoch, operation, 0.03 + 0.007 * epoch)
        worst, torn = max(worst, seconds), torn + outcome.startswith("CommError")
        meet(store, f"inside{epoch}", rank, world_size)
    comm.close()
    return {"worst_s": worst, "torn": torn}


def at_once(rank: int, world_size: int, store: Any, count: int) -> dict[str, Any]:
    """Two communicators, a store's client and connections of others come about at the same time, again and again."""
    everyone, hosts = tuple(range(world_size)), rank == 0
    port = 0 if hosts else int(store.get("port"))
    shared = TCPStore("127.0.0.1", port, is_master=hosts, wait_for_workers=False)
    if hosts:
        store.set("port", str(shared.port))
    mine = Communicator(shared, rank, timeout_s=10.0)
    other = mine.spawn("b")
    strangers: list[socket.socket] = []
    over = threading.Event()
    result: dict[str, Any] = {"owned": [], "shared": 0, "foreign": 0, "after": [], "connected_meanwhile": 0}
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def connect() -> None:
            while not over.wait(0.005) and len(strangers) < 100:
                strangers.append(socket.create_connection(listener.getsockname()[:2]))
                strangers.append(listener.accept()[0])

        connecting = threading.Thread(target=connect)
        connecting.start()
        for epoch in range(count):
            client, before = StoreClient(shared), len(strangers)
            ways: list[Callable[[], Any]] = [
                lambda epoch=epoch: mine.reconfigure(epoch, [everyone]),
                lambda epoch=epoch: other.reconfigure(epoch, [everyone]),
                client.connect,
            ]
            threads = [threading.Thread(target=way) for way in ways]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            result["connected_meanwhile"] += len(strangers) - before
            owned = [mine.group(everyone).sockets, other.group(everyone).sockets, client._sockets]
            known = {_entry(stranger) for stranger in list(strangers)}
            result["owned"].append([len(own) for own in owned])
            result["shared"] += sum(len(own) for own in owned) - len(frozenset[Socket]().union(*owned))
            result["foreign"] += sum(len(own & known) for own in owned)
            client.hang_up()
            meet(store, f"connected{epoch}", rank, world_size)
            mine.group(everyone).abort()
            result["after"].append(total(other.group(everyone), 1.0))
            meet(store, f"once{epoch}", rank, world_size)
        over.set()
        connecting.join()
    strangers[0].sendall(b"still")
    result["echo"] = strangers[1].recv(5)
    for stranger in strangers:
        stranger.close()
    mine.close()
    other.close()
    meet(store, "at once", rank, world_size)
    return result


def _entry(sock: socket.socket) -> Socket:
    return sock.fileno(), os.fstat(sock.fileno()).st_ino
