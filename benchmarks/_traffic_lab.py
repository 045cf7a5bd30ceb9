"""Flows on a real network of two spines: hashed by the kernel or placed, and placed anew when a link dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from trainsys.comm.communicator import Communicator
from trainsys.comm.group import CommError
from trainsys.comm.traffic import Flow, LeafSpine, Placement, place, replan
from trainsys.testing.spine_lab import SpineLab, address, cut

Plan = tuple[tuple[int, int, int], ...]  # of each flow: source, destination, plane
PIECE = 1 << 16  # bytes that show that a path carries
CUT_AFTER = 20  # pieces


class Cut(NamedTuple):
    """The link to end: process of the leaf, node of the spine."""

    pid: int
    spine: int


def carry(host: int, num_hosts: int, store: Any, plan: Plan, num_bytes: int) -> list[tuple[float, float]]:
    """Start and end of what this host receives, all flows at once; each on a group of its own."""
    comm = _connected(host, store, 0, plan)
    data = torch.zeros(num_bytes, dtype=torch.uint8)
    _meet(store, "carry", host, num_hosts)
    start = time.perf_counter()
    _transfer(comm, host, plan, data)
    end = time.perf_counter()
    _meet(store, "carried", host, num_hosts)
    comm.close()
    return [(start, end)] * sum(dst == host for _, dst, _ in plan)


def survive(
    host: int, num_hosts: int, store: Any, network: LeafSpine, flows: Sequence[Flow], placement: Placement, end: Cut
) -> dict[str, float]:
    """Host 0 ends a link under way, and says so; all flows go on, those that took it over another. Seconds since then.

    The link's end is told, not found: `told` is when this host heard, `planned` when it knew the new paths, `carries`
    when all its flows had passed on a piece.
    """
    comm, plan = _connected(host, store, 0, _plan(flows, placement)), _plan(flows, placement)
    data, heard = torch.zeros(PIECE, dtype=torch.uint8), list[float]()
    listener = threading.Thread(target=_listen, args=(store.clone(), comm, heard))
    listener.start()
    _meet(store, "survive", host, num_hosts)
    rounds = 0
    while not heard:
        try:
            _transfer(comm, host, plan, data)
        except CommError:
            break
        rounds += 1
        if host == 0 and rounds == CUT_AFTER:
            cut(end.pid, end.spine)
            store.set("cut", repr(time.perf_counter()))
    listener.join()
    told, began = heard[0], float(store.get("cut"))
    leaf = network.leaf(0)
    paths = [network.paths(flow) for flow in flows]
    after = replan(placement, flows, paths, network.gbps, [(leaf, end.spine), (end.spine, leaf)])
    planned, plan = time.perf_counter(), _plan(flows, after)
    comm.address = lambda ranks: _address(host, plan, ranks)
    comm.reconfigure(1, [(a, b) for a, b, _ in plan])
    _transfer(comm, host, plan, data)
    carries = time.perf_counter()
    _meet(store, "survived", host, num_hosts)
    comm.close()
    moved = sum(a != b for a, b in zip(placement, after, strict=True))
    return {"told": told - began, "planned": planned - began, "carries": carries - began, "moved": moved}


def _listen(store: Any, comm: Communicator, heard: list[float]) -> None:
    """Body of the thread that hears of the link's end and frees this host."""
    store.get("cut")
    heard.append(time.perf_counter())
    comm.abort(0)


def _plan(flows: Sequence[Flow], placement: Placement) -> Plan:
    return tuple((flow.src, flow.dst, path) for flow, path in zip(flows, placement, strict=True))


def _address(host: int, plan: Plan, ranks: Sequence[int]) -> str:
    return next(address(plane, host) for a, b, plane in plan if (a, b) == tuple(ranks))


def _connected(host: int, store: Any, epoch: int, plan: Plan) -> Communicator:
    comm = Communicator(store, host, timeout_s=20.0)
    comm.address = lambda ranks: _address(host, plan, ranks)
    comm.reconfigure(epoch, [(a, b) for a, b, _ in plan])
    return comm


def _transfer(comm: Communicator, host: int, plan: Plan, data: torch.Tensor) -> None:
    """All flows at once."""
    under_way = []
    for a, b, _ in plan:
        if host == a:
            under_way.append((comm.group((a, b)), comm.group((a, b)).isend(data, b, 0)))
        elif host == b:
            under_way.append((comm.group((a, b)), comm.group((a, b)).irecv(torch.empty_like(data), a, 0)))
    for group, work in under_way:
        group.wait(work)


def _meet(store: Any, name: str, rank: int, world_size: int) -> None:
    store.set(f"{name}/{rank}", b"here")
    store.wait([f"{name}/{r}" for r in range(world_size)])


def measure(network: LeafSpine, flows: Sequence[Flow], trials: int) -> dict[str, Any]:
    """Seconds of the slowest flow: placed, and hashed in `trials` with ports of their own; then a link's end."""
    paths = [network.paths(flow) for flow in flows]
    placement, num_bytes = place(flows, paths, network.gbps), int(flows[0].load)
    hashing = tuple((flow.src, flow.dst, network.spines) for flow in flows)
    with SpineLab(network) as lab:
        ideal = num_bytes / (network.spine_gbps * 1e9 * lab.payload)
        placed = [_trial(lab, _plan(flows, placement), num_bytes) for _ in range(min(3, trials))]
        hashed = [_trial(lab, hashing, num_bytes) for _ in range(trials)]
        spine = network.spine(placement[0])
        ended = lab.run(survive, network, flows, placement, Cut(lab.pids[network.leaf(0)], spine))
    return {
        "flows": len(flows),
        "megabytes": num_bytes / 1e6,
        "alone_s": ideal,
        "placed": placed,
        "hashed": hashed,
        "cut": {key: max(host[key] for host in ended) for key in ("told", "planned", "carries", "moved")},
    }


def _trial(lab: SpineLab, plan: Plan, num_bytes: int) -> dict[str, float]:
    """Seconds of the slowest flow, and how many flows' bytes the busiest uplink carried."""
    before = lab.uplinks()
    spans = [span for host in lab.run(carry, plan, num_bytes) for span in host]
    after = lab.uplinks()
    slowest = max(end for _, end in spans) - min(start for start, _ in spans)
    return {"slowest_s": slowest, "met": round(max(after[e] - before[e] for e in after) / num_bytes)}
