"""Resharding live state between layouts, against the wire and against DCP through RAM, in one run.

The state is the fp32 masters and Adam moments of a Llama whose sizes are chosen so that it has the asked MiB. Every
repetition begins at a barrier and lasts until the slowest rank is done; medians over the repetitions
(the census: once). The connections have carried bytes before, as they have where a run trains.

* `seconds`: `run_transition`, planning included. The census that a run takes before the commit is timed apart.
* `wire_seconds`: the same bytes between the same ranks as one big tensor per pair, receives posted first and buffers
  in place, so that this bound knows how many ranks share a core.
* `floor_seconds`: the same into new memory, and then one copy of what stays on its rank: the work that a way which
  keeps the old state whole cannot avoid, done plainly and not overlapped. A reference, not a strict bound.
* `dcp_seconds`: `torch.distributed.checkpoint` save and load of the same state as DTensors, in a folder in memory.
  Under ZeRO-1 they are sharded by rows, as FSDP does, where ours are dealt out in chunks.
* `redistribute_seconds`: `DTensor.redistribute`, where one mesh can express the change.

Destinations have no mirrors unless `--mirrors` is given, because the peers make no second copy. Every element of every
result is compared with what its global coordinate says it must be.

With `--release progressive` the source goes portion by portion as the destination arrives, each hashed at both ends
first; only that is measured then, and its peak is compared with the promised bound.

    trainsys bench reshard [--mib 210,1024] [--case NAME] [--repeat 5] [--mirrors] [--release progressive] [--json]
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks._clock import Span, median_s, span
from benchmarks._reshard_cases import CASES, Case, build, expected, state_bytes
from trainsys.cli.arguments import Parser
from trainsys.comm.communicator import Communicator
from trainsys.comm.exchange import exchange
from trainsys.comm.group import Group
from trainsys.elastic.census import take_census
from trainsys.elastic.staging import STAGING_BYTES, Staging
from trainsys.elastic.transit import carry_out, run_transition
from trainsys.parallel.pages import want_huge_pages
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.places import piece_places, storage_places
from trainsys.space.tensor import SLOTS, Space
from trainsys.space.transition import Transition, transition
from trainsys.testing import RankPool

CPU = torch.device("cpu")


def body(rank: int, world_size: int, store: Any, name: str, mib: float, repeat: int, mirrored: bool) -> dict[str, Any]:
    """One rank: the spans of every way, on the common clock, and what it counted."""
    members = tuple(range(world_size))
    comm = Communicator(store, rank)
    comm.reconfigure(0, [members])
    group = comm.group(members)
    case, space, src, dst = build(name, mib, mirrored)
    alive = tuple(r for r in src.ranks if r not in case.lost)
    old = filled(space, src, rank) if rank in src.ranks and rank not in case.lost else None
    takes_part = rank in alive or rank in dst.ranks
    share = transition(space, src, dst, rank, alive, lambda r: 0) if takes_part else Transition(rank, (), (), ())
    row: dict[str, Any] = {"rank": rank, "received": _bytes(share.receives), "spans": {}}
    part = [r for r in members if r in alive or r in dst.ranks]
    comm.reconfigure(1, [members, tuple(part)] if len(part) < world_size else [members], [group.name])
    party = comm.group(tuple(part)) if takes_part else None
    results: list[FlatState] = []
    stagings: list[Staging] = []

    def ours() -> None:
        stagings.append(Staging())
        if party is not None:
            nodes = dict.fromkeys(members, 0)
            new, _ = run_transition(
                space, src, dst, rank, alive, nodes, old, party, torch.float32, CPU, staging=stagings[-1]
            )
            results.append(new)

    def transfer() -> None:
        if party is not None:
            carried.append(carry_out(share, space, dst, old, party, torch.float32, CPU, Staging()))

    def census() -> None:
        if party is not None:
            take_census(space, rank, src, alive, old, dst, results[0], 0)

    def plan() -> None:
        if takes_part:
            transition(space, src, dst, rank, alive, lambda r: 0)

    timed(group, wire(group, share), 2)
    row["spans"]["ours"] = timed(group, ours, repeat, results.clear)
    row["right"] = not results or is_right(results[0], space, dst, rank)
    row["spans"]["census"] = timed(group, census, 1)
    row["spans"]["plan"] = timed(group, plan, repeat)
    row["peak"] = max(s.peak_bytes for s in stagings)
    row["state"] = sum(_state_bytes(s) for s in (old, *results))
    results.clear()
    carried: list[FlatState] = []
    row["spans"]["transfer"] = timed(group, transfer, repeat, carried.clear)
    carried.clear()
    row["spans"]["wire"] = timed(group, wire(group, share), repeat)
    fresh: list[torch.Tensor] = []
    row["spans"]["floor"] = timed(group, floor(group, share, fresh), repeat, fresh.clear)
    comm.close()
    row |= _peers(case, space, src, dst, rank, world_size, store, repeat)
    row["spans"] |= row.pop("peer_spans")
    return row


def filled(space: Space, layout: Layout, rank: int) -> FlatState:
    """What `rank` stores under `layout`: each value tells its slot and coordinate."""
    state = FlatState(layout.storage(space, rank), torch.float32, CPU)
    for piece, offset in storage_places(space, layout, rank):
        for place in piece_places(space.tensors[piece.tensor], layout.tp, piece, offset):
            for slot in SLOTS:
                state.run(slot, place).copy_(expected(space, piece.tensor, slot, place.box.start, place.box.stop))
    return state


def is_right(state: FlatState, space: Space, layout: Layout, rank: int) -> bool:
    if rank not in layout.ranks:
        return state.numel == 0
    right = filled(space, layout, rank)
    return state.pieces == right.pieces and all(torch.equal(state.slots[s], right.slots[s]) for s in SLOTS)


def wire(group: Group, share: Transition) -> Callable[[], None]:
    """The moves' bytes between the same pairs, nothing planned, packed or placed; every page is there before."""
    sends, receives = _per_peer(group, share)
    data = [(peer, torch.ones(n), 0) for peer, n in sends]
    into = [(peer, torch.ones(n), 0) for peer, n in receives]
    return lambda: exchange(group, data, into)


def _per_peer(group: Group, share: Transition) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(peer, elements) to send and to receive, starting after this rank."""
    out: dict[int, int] = {}
    into: dict[int, int] = {}
    for m in share.sends:
        out[m.dst] = out.get(m.dst, 0) + len(SLOTS) * m.box.numel
    for m in share.receives:
        into[m.src] = into.get(m.src, 0) + len(SLOTS) * m.box.numel
    sends, receives = (
        sorted(per_peer.items(), key=lambda i: sign * (i[0] - group.rank) % group.size)
        for per_peer, sign in ((out, 1), (into, -1))
    )
    return sends, receives


def floor(group: Group, share: Transition, fresh: list[torch.Tensor]) -> Callable[[], None]:
    """The same into memory that is new, as a state beside the old one has to be, and one copy of what stays."""
    local = torch.ones(len(SLOTS) * sum(m.box.numel for m in share.local))
    sends, receives = _per_peer(group, share)
    data = [(peer, torch.ones(n), 0) for peer, n in sends]

    def act() -> None:
        fresh.extend(want_huge_pages(torch.empty(n)) for _, n in receives)
        into = [(peer, buffer, 0) for (peer, _), buffer in zip(receives, fresh, strict=True)]
        exchange(group, data, into)
        fresh.append(want_huge_pages(torch.empty_like(local)).copy_(local))

    return act


def timed(
    group: Group, action: Callable[[], None], repeat: int, forget: Callable[[], None] | None = None
) -> list[Span]:
    """(start, end) of each repetition on this rank; all start together. `forget` drops the last one's results."""
    spans = []
    for _ in range(repeat):
        if forget is not None:
            forget()
        spans.append(span(group, action))
    group.backend.barrier().wait()
    return spans


def _peers(
    case: Case, space: Space, src: Layout, dst: Layout, rank: int, world_size: int, store: Any, repeat: int
) -> dict[str, Any]:
    from benchmarks._reshard_peers import run_peers  # pulls in DTensor

    return run_peers(case, space, src, dst, rank, world_size, store, repeat)


def _bytes(moves: Sequence[Any]) -> int:
    return 4 * len(SLOTS) * sum(m.box.numel for m in moves)


def _state_bytes(state: FlatState | None) -> int:
    return 0 if state is None else sum(t.untyped_storage().nbytes() for t in state.slots.values())


def measure(pool: RankPool, name: str, mib: float, repeat: int, mirrored: bool) -> dict[str, Any]:
    """One row of the table."""
    case = CASES[name]
    results = pool.run(body, case.ranks, name, mib, repeat, mirrored, timeout_s=600)

    def seconds(way: str) -> float | None:
        spans = [r["spans"][way] for r in results if way in r["spans"]]
        if not spans:
            return None
        return median_s(spans)

    return {
        "case": name,
        "ranks": case.ranks,
        "state_bytes": state_bytes(build(name, mib, mirrored)[1]),
        "bytes": sum(r["received"] for r in results),
        "seconds": seconds("ours"),
        "plan_seconds": seconds("plan"),
        "transfer_seconds": seconds("transfer"),
        "census_seconds": seconds("census"),
        "wire_seconds": seconds("wire"),
        "floor_seconds": seconds("floor"),
        "dcp_seconds": seconds("dcp"),
        "redistribute_seconds": seconds("redistribute"),
        "redistribute": case.redistribute,
        "peak_bytes": max(r["peak"] for r in results),
        "bound_bytes": max(r["state"] for r in results) + STAGING_BYTES,
        "staging_bytes": max(r["peak"] - r["state"] for r in results),
        "right": all(r["right"] and r["peers_right"] for r in results),
    }


def main(argv: Sequence[str]) -> int:
    parser = Parser("bench reshard", __doc__.splitlines()[0], "  trainsys bench reshard --json")
    parser.add_argument("--mib", default="210", help="sizes of the whole state, MiB")
    parser.add_argument("--case", choices=list(CASES), help="one case only")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--mirrors", action="store_true", help="destinations keep their mirrors, as in a run")
    parser.add_argument("--release", choices=("commit", "progressive"), default="commit", help="as elastic.release")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows, one, show = [], measure, _show
    if args.release == "progressive":
        from benchmarks import _reshard_release

        one, show = _reshard_release.measure, _reshard_release.show
    pool = RankPool()
    cores = len(os.sched_getaffinity(0))
    if not args.json:
        print(f"gloo over loopback, {cores} cores, median of {args.repeat}, slowest rank")
    for mib in map(float, args.mib.split(",")):
        for name in [args.case] if args.case else CASES:
            rows.append(one(pool, name, mib, args.repeat, args.mirrors))
            if not args.json:
                show(rows[-1], cores)
    pool.close()
    if args.json:
        print(json.dumps({"cores": cores, "repeat": args.repeat, "release": args.release, "rows": rows}))
    return 0 if all(r["right"] for r in rows) else 1


def _show(row: dict[str, Any], cores: int) -> None:
    crowded = f"; {row['ranks']} ranks share {cores} cores" if row["ranks"] > cores else ""
    print(
        f"{row['case']:14} state {row['state_bytes'] / 2**20:.0f} MiB, {row['bytes'] / 2**20:.0f} MiB move{crowded}; "
        f"peak {row['peak_bytes'] / 2**20:.0f} MiB per rank, {row['staging_bytes'] / 2**20:.1f} of it staging, "
        f"of source + destination + budget = {row['bound_bytes'] / 2**20:.0f}; right: {row['right']}"
    )
    ours = row["seconds"]
    print(
        f"  ours          {ours:7.3f} s  planning {row['plan_seconds']:.3f} s, transfer {row['transfer_seconds']:.3f} s"
    )
    for way in ("wire", "floor", "dcp", "redistribute"):
        seconds, result = row[f"{way}_seconds"], row.get(way, "")
        if seconds is not None:
            both = f"ours/{way} {ours / seconds:.2f}, transfer/{way} {row['transfer_seconds'] / seconds:.2f}"
            result = f"{seconds:7.3f} s  {both}"
        print(f"  {way:13} {result}", flush=True)
    print(f"  census        {row['census_seconds']:7.3f} s, apart")


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
