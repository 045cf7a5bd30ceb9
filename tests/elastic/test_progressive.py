"""Progressive transitions on gloo ranks: the right bits, bounded memory, and a way on from any failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.elastic.test_transit import CPU, MESHES, filled, layouts
from trainsys.comm.communicator import Communicator
from trainsys.config import ModelConfig
from trainsys.elastic.progressive import Holding, Passage, PortionError
from trainsys.elastic.staging import Staging
from trainsys.models.geometry import tensors
from trainsys.parallel.release import PAGE
from trainsys.parallel.state import FlatState
from trainsys.space.layout import Layout
from trainsys.space.portions import Held, Portions, portions_within
from trainsys.space.tensor import SLOTS, Space

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
