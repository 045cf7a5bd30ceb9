"""Any f ranks may be lost at once: exhaustively over small layouts; and not one rank more where no more is kept."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainsys.config import ModelConfig, ParallelConfig
from trainsys.models.geometry import resolve, split_layers, tensors
from trainsys.space.build import build_layout, succeed
from trainsys.space.coverage import LostError, check_covered
from trainsys.space.layout import Layout
from trainsys.space.mirrors import mirrors
from trainsys.space.tensor import Space

DENSE = Space(tensors(resolve(ModelConfig(vocab_size=16, dim=8, num_layers=3, num_heads=2, ffn_dim=8, tied=True))))
EXPERTS = Space(
    tensors(resolve(ModelConfig("mixtral", vocab_size=16, dim=8, num_layers=2, num_heads=2, ffn_dim=8, num_experts=4)))
)
GRIDS = [
    (DENSE, ParallelConfig(dp=5, zero=1)),
    (DENSE, ParallelConfig(dp=2, tp=2, zero=0)),
    (DENSE, ParallelConfig(dp=3, pp=2, zero=2)),
    (DENSE, ParallelConfig(pp=3, zero=0, stage_replicas=(1, 2, 3))),
    (DENSE, ParallelConfig(dp=2, pp=2, zero=3)),
    (DENSE, ParallelConfig(dp=2, pp=3, zero=0)),
    (DENSE, ParallelConfig(cp=2, pp=2, zero=0)),
    (EXPERTS, ParallelConfig(dp=4, ep=2, zero=0)),
    (EXPERTS, ParallelConfig(dp=4, ep=4, zero=1)),
]


def build(space: Space, parallel: ParallelConfig, tolerate: int) -> Layout:
    layers = split_layers(max(t.block for t in space.tensors), parallel.pp)
    replicas = sum(parallel.stage_replicas) or parallel.dp * parallel.pp
    ranks = range(replicas * parallel.tp * parallel.cp)
    return build_layout(parallel, layers, ranks, 20, lambda r: r // 2, tolerate=tolerate)


def lost(space: Space, layout: Layout, dead: tuple[int, ...]) -> bool:
    try:
        check_covered(space, layout, [r for r in layout.ranks if r not in dead])
    except LostError:
        return True
    return False


@pytest.mark.parametrize("tolerate", [1, 2, 3])
@pytest.mark.parametrize(("space", "parallel"), GRIDS)
def test_any_so_many_losses_leave_a_holder(space: Space, parallel: ParallelConfig, tolerate: int) -> None:
    layout = build(space, parallel, tolerate)
    assert layout.tolerates == tolerate
    assert not any(lost(space, layout, dead) for dead in combinations(layout.ranks, tolerate))
    if parallel.zero:
        assert any(lost(space, layout, dead) for dead in combinations(layout.ranks, tolerate + 1)), "more was kept"


def test_the_successor_tolerates_as_much_again() -> None:
    """dp 5 loses two at once, twice: three ranks tolerate two losses, one rank none."""
    layout, alive = build(DENSE, ParallelConfig(dp=5, zero=1), 2), [0, 1, 2, 3, 4]
    for dead in ((1, 4), (0, 3)):
        alive = [r for r in alive if r not in dead]
        assert not lost(DENSE, layout, dead)
        layout = succeed(layout, ParallelConfig(dp=len(alive), zero=1), (3,), alive, lambda r: r // 2, tolerate=2)
        assert layout.tolerates == min(2, len(alive) - 1)


def test_no_copies() -> None:
    layout = build(DENSE, ParallelConfig(dp=3, zero=1), 0)
    assert layout.mirrors == ()
    assert all(lost(DENSE, layout, (dead,)) for dead in layout.ranks)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=10), st.integers(1, 4))
def test_peers_are_spread_over_nodes(places: list[int], tolerate: int) -> None:
    """By definition: one after the other, each the next around the ring on a node with the fewest copies so far."""
    order = sorted(range(len(places)), key=lambda r: (places[:r].count(places[r]), r))
    pairs = []
    for rank in range(len(places)):
        at, chosen = order.index(rank), [rank]
        while len(chosen) <= min(tolerate, len(places) - 1):
            others = [r for r in order[at + 1 :] + order[:at] if r not in chosen]
            copies = [sum(places[c] == places[r] for c in chosen) for r in others]
            chosen.append(others[copies.index(min(copies))])
        pairs += [(rank, peer) for peer in chosen[1:]]
    assert mirrors(range(len(places)), places.__getitem__, tolerate) == tuple(pairs)
