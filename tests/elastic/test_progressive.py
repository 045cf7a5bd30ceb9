"""Progressive transitions on gloo ranks: the right bits, bounded memory, and a way on from any failure."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.elastic.test_transit import CPU, MESHES, filled, layouts
from trainsys.comm.communicator import Communicator
from trainsys.config import ModelConfig, ParallelConfig
from trainsys.elastic.holding import Holding
from trainsys.elastic.progressive import Passage, PortionError
from trainsys.elastic.staging import Staging
from trainsys.elastic.transit import Transit
from trainsys.models.geometry import split_layers, tensors
from trainsys.parallel.release import PAGE
from trainsys.parallel.state import FlatState
from trainsys.space.build import build_layout, succeed
from trainsys.space.layout import Layout
from trainsys.space.portions import Held, Portions, advanced, portions_within
from trainsys.space.tensor import SLOTS, Space
from trainsys.testing import RankPool

LAYERS = 4


def space_of(dim: int) -> Space:
    return Space(tensors(ModelConfig(vocab_size=64, dim=dim, num_layers=LAYERS, num_heads=4, max_seq_len=8)))


def state_bytes(space: Space, layout: Layout, rank: int) -> int:
    return len(SLOTS) * 4 * sum(p.numel for p in layout.storage(space, rank)) if rank in layout else 0


@dataclass
class Rank:
    """What a rank keeps from transition to transition."""

    rank: int
    store: Any
    space: Space
    budget: int
    holdings: dict[int, Holding]

    def change(
        self, held: tuple[Held, ...], dst: Layout, alive: tuple[int, ...], epoch: int, count: int,
        at: Callable[[str], None] = lambda phase: None,
    ) -> tuple[Passage, Staging, str]:  # fmt: skip
        """One transition of the ranks that take part, and why it failed."""
        members = tuple(sorted({*alive, *dst.ranks}))
        comm = Communicator(self.store, self.rank)
        comm.reconfigure(epoch, [members])
        staging, tps = Staging(self.budget), {dst.tp, *(h.layout.tp for h in held)}
        passage = Passage(
            self.space, held, dst, self.rank, alive, dict.fromkeys(members, 0), self.holdings, epoch,
            Portions(self.space, count, tps, dst.chunk), comm.group(members), torch.float32, CPU, staging,
        )  # fmt: skip
        failed = ""
        try:
            passage.run(at)
        except (PortionError, Stop) as error:
            failed = str(error)
        comm.close()
        return passage, staging, failed


class Stop(Exception):
    """Ends a transition here, as the death of a peer would."""


def stop_after(portions: int) -> Callable[[str], None]:
    left = [portions]

    def at(phase: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stop(f"after {portions}")

    return at


def right(space: Space, state: FlatState, layout: Layout, rank: int) -> bool:
    wanted = filled(space, layout, rank) if rank in layout else FlatState((), torch.float32, CPU)
    return all(torch.equal(state.slots[s], wanted.slots[s]) for s in SLOTS)


def reshard(rank: int, world_size: int, store: Any, name: str, dim: int, chunk: int, budget: int) -> dict[str, Any]:
    space = space_of(dim)
    src, dst, alive = layouts(name, LAYERS, chunk)
    if rank not in {*alive, *dst.ranks}:
        return {}
    count = portions_within(space, (src, dst), budget, 4)
    holdings = {0: Holding(filled(space, src, rank), True)} if rank in alive else {}
    body = Rank(rank, store, space, budget, holdings)
    passage, staging, failed = body.change((Held(0, src, 0, count),), dst, alive, 1, count)
    assert not failed
    return {
        "count": count,
        "right": right(space, passage.new, dst, rank),
        "peak": staging.peak_bytes,
        "most": max(state_bytes(space, src, rank) if rank in alive else 0, state_bytes(space, dst, rank)),
        "both": sum(state_bytes(space, layout, rank) for layout in (src, dst)),
        "left": {epoch: h.resident_bytes for epoch, h in body.holdings.items()},
        "received": passage.received,
    }


@pytest.mark.parametrize("name", list(MESHES))
@pytest.mark.parametrize(("dim", "chunk", "budget"), [(32, 512, 32 << 10), (32, 500, 16 << 20), (256, 4096, 4 << 20)])
def test_every_element_and_bounded_memory(ranks: Any, name: str, dim: int, chunk: int, budget: int) -> None:
    rows = [r for r in ranks.run(reshard, 4, name, dim, chunk, budget) if r]
    assert all(r["right"] for r in rows)
    assert sum(r["received"] for r in rows) > 0
    edges = 3 * PAGE
    for r in rows:
        print(name, {k: (v >> 10) if isinstance(v, int) and k != "count" else v for k, v in r.items()})
        assert all(n <= 2 * edges for epoch, n in r["left"].items() if epoch == 0)


# -- failures --------------------------------------------------------------------------------------------------------


def chain(rank: int, world_size: int, store: Any, chunk: int, budget: int) -> dict[str, Any]:
    """From dp2·pp2 to dp3, which fails as rank 3 is lost; to pp2, which fails; and to dp2, which works."""
    space = space_of(32)
    src = build_layout(ParallelConfig(dp=2, pp=2, zero=1), (2, 2), range(4), chunk, lambda r: 0)
    three = succeed(src, ParallelConfig(dp=3, zero=1), (LAYERS,), (0, 1, 2), lambda r: 0)
    two = succeed(src, ParallelConfig(pp=2, zero=1), split_layers(LAYERS, 2), (0, 1), lambda r: 0)
    count = portions_within(space, (src, three), budget, 4)
    assert count > 12
    body = Rank(rank, store, space, budget, {0: Holding(filled(space, src, rank), True)})
    held: tuple[Held, ...] = (Held(0, src, 0, count),)
    released, names = [], []
    for epoch, dst, alive, stop, lag in ((1, three, (0, 1, 2, 3), 9, True), (2, two, (0, 1, 2), 4, False)):
        if rank in alive:
            if lag and rank:  # rank 0 hears the last verdict, the others do not
                body.holdings[0].release = refuse(body.holdings[0].release, stop - 1)  # type: ignore[method-assign]
            passage, _, failed = body.change(held, dst, alive, epoch, count, stop_after(stop))
            assert failed
            released.append(passage.released)
            body.holdings[0].__dict__.pop("release", None)
        held = advanced(held, Held(epoch, dst, 0, stop))
        names.append([(h.epoch, h.first, h.stop) for h in held])
    row: dict[str, Any] = {"released": released, "held": names, "right": True}
    if rank in (0, 1, 2):
        last = succeed(src, ParallelConfig(dp=2, zero=1), (LAYERS,), (0, 1), lambda r: 0)
        passage, _, failed = body.change(held, last, (0, 1, 2), 3, count)
        assert not failed
        row["right"] = right(space, passage.new, last, rank)
        row["alive"] = {epoch: len(h.alive) for epoch, h in body.holdings.items()}
    return row


def refuse(release: Callable[[int], None], portion: int) -> Callable[[int], None]:
    def act(asked: int) -> None:
        if asked == portion:
            raise Stop(f"at {portion}")
        release(asked)

    return act


def test_the_way_goes_on_from_wherever_the_portions_stand(ranks: Any) -> None:
    rows = ranks.run(chain, 4, 512, 32 << 10)
    count = rows[0]["held"][0][-1][-1]
    assert [r["released"] for r in rows] == [[9, 4], [8, 4], [8, 4], [8]]
    assert rows[0]["held"] == [[(1, 0, 9), (0, 9, count)], [(2, 0, 4), (1, 4, 9), (0, 9, count)]]
    assert all(r["right"] for r in rows)
    assert rows[0]["alive"] == rows[1]["alive"] == {0: 0, 1: 0, 2: 0, 3: count}


def corrupted(rank: int, world_size: int, store: Any, slot: str, copy: bool) -> dict[str, Any]:
    """One rank finds another value than was sent, in what it owns or in its copy for another, and later it does not."""
    space, chunk, budget = space_of(32), 512, 32 << 10
    src, dst, alive = layouts("zero dp4 to dp3", LAYERS, chunk)
    if rank not in dst:
        return {}
    count = portions_within(space, (src, dst), budget, 4)
    body = Rank(rank, store, space, budget, {0: Holding(filled(space, src, rank), True)})
    run, planted = Transit.run, []

    def damaged(self: Transit, *args: Any) -> None:
        run(self, *args)
        portion = max(body.holdings[1].alive)
        spans = [s for s in body.holdings[1].spans[portion] if (s.others < 0) == copy]
        if rank == 1 and portion > 4 and spans and not planted:
            self.new.slots[slot][spans[0].offset] += 1
            planted.append(portion)

    held: tuple[Held, ...] = (Held(0, src, 0, count),)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transit, "run", damaged)
        passage, _, failed = body.change(held, dst, alive, 1, count)
    held = advanced(held, Held(1, dst, 0, passage.released))
    row: dict[str, Any] = {"failed": failed, "released": passage.released, "planted": planted}
    passage, _, failed = body.change(held, dst, alive, 2, count)
    return {**row, "again": failed, "right": right(space, passage.new, dst, rank)}


@pytest.mark.parametrize(("slot", "copy"), [("master", False), ("exp_avg_sq", True)])
def test_what_arrives_wrong_is_noticed_before_its_source_goes(ranks: Any, slot: str, copy: bool) -> None:
    rows = [r for r in ranks.run(corrupted, 4, slot, copy) if r]
    assert len({r["failed"] for r in rows}) == 1
    (portion,) = rows[1]["planted"]
    assert f"portion {portion} of" in rows[0]["failed"]
    assert f"copies of {slot} differ" in rows[0]["failed"]
    assert (f"{slot} changed in transit" in rows[0]["failed"]) == (not copy)
    assert all(r["released"] == portion and not r["again"] and r["right"] for r in rows)


# -- memory as the system counts it -----------------------------------------------------------------------------------


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def resident(rank: int, world_size: int, store: Any, budget: int) -> dict[str, Any]:
    """108 MiB of state per rank and layout: what is counted, and by how much the process grows."""
    space = Space(tensors(ModelConfig(vocab_size=4096, dim=512, num_layers=2, num_heads=4, max_seq_len=8)))
    src = build_layout(ParallelConfig(dp=2, zero=1), (2,), range(2), 16384, lambda r: 0)
    dst = succeed(src, ParallelConfig(pp=2, zero=1), (1, 1), (0, 1), lambda r: 0)
    count = portions_within(space, (src, dst), budget, 4)
    model = ModelConfig(vocab_size=256, dim=512, num_layers=2, num_heads=4, max_seq_len=8)
    body = Rank(rank, store, Space(tensors(model)), budget, {})
    for epoch in (-1, 0):  # at first less, so that threads and buffers of the libraries are there
        before = rss_bytes()
        state = FlatState(src.storage(body.space, rank), torch.float32, CPU)
        for i, flat in enumerate(state.slots.values()):
            flat.fill_(i + 0.5)
        body.holdings = {epoch: Holding(state, True)}
        if epoch < 0:
            body.change((Held(epoch, src, 0, 2),), dst, (0, 1), 0, 2)
            body.space, body.holdings = space, {}
            del state, flat
    grown, counted, ended = [], [], threading.Event()

    def at(phase: str) -> None:
        grown.append(rss_bytes() - before)
        counted.append(sum(h.resident_bytes for h in body.holdings.values()))

    def watch() -> None:
        while not ended.wait(0.001):
            grown.append(rss_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, staging, failed = body.change((Held(0, src, 0, count),), dst, (0, 1), 1, count, at)
    ended.set()
    watcher.join()
    assert not failed
    return {
        "states": [state_bytes(space, layout, rank) for layout in (src, dst)],
        "grown": max(grown), "counted": staging.peak_bytes, "between": max(counted), "end": rss_bytes() - before,
    }  # fmt: skip


def test_the_process_grows_by_what_is_counted() -> None:
    budget, slack, pool = 8 << 20, 8 << 20, RankPool()  # slack: gloo's own, threads, hashes, the plan
    try:
        rows = pool.run(resident, 2, budget)
    finally:
        pool.close()
    for r in rows:
        assert min(r["states"]) > 100 << 20
        assert r["counted"] <= max(r["states"]) + budget
        assert abs(r["grown"] - r["counted"]) < slack, r
        assert r["end"] < max(r["states"]) + slack
