"""What can go wrong in attention over a cut sequence, and how it is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel.sequence_bodies import Case, attend
from trainsys.comm.group import CommError, Group
from trainsys.comm.wires import mesh, star
from trainsys.parallel.sequence.attend import CpAttention
from trainsys.parallel.sequence.context import ContextParallel
from trainsys.sequence.layouts import contiguous, zigzag
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.sequence.place import Place, Plan, in_canonical_order
from trainsys.testing import RankPool

CPU = torch.device("cpu")


def leaves_early(rank: int, world_size: int, store: Any, method: str) -> str:
    """The last rank agrees and then is gone; what the others are told."""
    group = Group(store, "leaves", range(world_size), rank, "gloo", 10.0)
    cp = ContextParallel(group, range(world_size), 60, CPU, wires=star(world_size, 1.0), method=method)
    q = torch.randn(1, 60 // world_size, 4, 8)
    attention = CpAttention(cp, method, canonical=False)
    attention(q, q, q)
    if rank == world_size - 1:
        group.abort()
        return ""
    with pytest.raises(CommError) as caught:
        attention(q, q, q)
    group.abort()
    return str(caught.value)


@pytest.mark.parametrize("method", ["ring", "sliced"])
def test_a_peer_that_dies_in_the_middle_is_named_with_the_step(ranks: RankPool, method: str) -> None:
    told = ranks.run(leaves_early, 3, method)
    assert all(f"{method}, step" in words and "from rank" in words for words in told[:2]), told


def disagrees(rank: int, world_size: int, store: Any) -> tuple[str, int]:
    """Rank 1 has other heads; what each is told, and the operations begun after the agreement."""
    group = Group(store, "disagrees", range(world_size), rank, "gloo", 10.0)
    cp = ContextParallel(group, range(world_size), 60, CPU)
    q = torch.randn(1, 60 // world_size, 8 if rank == 1 else 4, 8)
    with pytest.raises(ValueError, match="ranks 0 and 1 disagree on an attention") as caught:
        CpAttention(cp, "ring")(q, q, q)
    pending = group.pending
    group.close()
    return str(caught.value), pending


def lacks_positions(rank: int, world_size: int, store: Any) -> str:
    """Rank 2 has fewer rows than its part of the sequence."""
    group = Group(store, "lacks", range(world_size), rank, "gloo", 10.0)
    cp = ContextParallel(group, range(world_size), 60, CPU)
    q = torch.randn(1, 20 - (rank == 2), 4, 8)
    attention = CpAttention(cp, "ring")
    with pytest.raises(ValueError, match="positions") as caught:
        attention(q, q, q)
    whole = torch.randn(1, 20, 4, 8)
    attention(whole, whole, whole)
    if rank == 2:
        with pytest.raises(ValueError, match="rank 2 has 20 of 60 positions"):  # later, too
            attention(q, q, q)
    group.close()
    return str(caught.value)


def test_a_rank_with_other_rows_than_its_part_tells_all(ranks: RankPool) -> None:
    told = ranks.run(lacks_positions, 3)
    assert all("rank 2 has 20 of 60 positions" in words for words in told), told


def test_ranks_that_disagree_are_named_before_anything_is_sent(ranks: RankPool) -> None:
    told = ranks.run(disagrees, 3)
    assert len({words for words, _ in told}) == 1
    assert all(pending == 0 for _, pending in told)


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "striped"])
def test_ranks_without_positions(ranks: RankPool, layout: str) -> None:
    names = [name for name in METHODS if name not in ("rail", "hierarchical", "hybrid")]
    cases = [Case(name, seq_len=3, layout=layout, canonical=canonical) for name in names for canonical in (False, True)]
    cases = [case for case in cases if case.method != "ulysses" or not case.canonical]
    for of_rank in ranks.run(attend, 4, cases):
        assert all(max(errors) < 1e-13 for errors, _ in of_rank)


@pytest.mark.parametrize(
    ("method", "heads", "canonical", "why"),
    [
        ("ulysses", (2, 1), False, r"parallel\.cp_method=ulysses .* parallel\.cp=4 .* there are 2"),
        ("ulysses", (8, 2), True, r"parallel\.cp_merge=canonical cannot share parallel\.cp=4 teams' 2 key heads"),
        ("hybrid", (1, 1), False, r"parallel\.cp_method=hybrid shares 1 heads"),
        ("rail", (4, 4), False, "needs 2 or more hosts"),
    ],
)
def test_what_a_method_cannot_serve_is_said(method: str, heads: tuple[int, int], canonical: bool, why: str) -> None:
    place = Place(zigzag(64, 4), Mask(), mesh(4, 1.0), *heads, 8, 8)

    def plan() -> Plan:
        made = METHODS[method](place)
        return in_canonical_order(made, place) if canonical else made

    with pytest.raises(ValueError, match=why):
        plan()


def test_masks_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="window=4 needs a causal mask"):
        Mask(False, 4)
    with pytest.raises(ValueError, match="must be rising positions after 0"):
        Mask(documents=(5, 5))


def test_what_nobody_looks_at_is_not_sent() -> None:
    """Under a zigzag the late part is needed by fewer: 25 % less; documents on one rank alone move nothing."""
    place = Place(zigzag(64, 4), Mask(), mesh(4, 1.0), 1, 1, 8, 8)
    journey = place.keys("direct")
    sent = sum(len(run) for leg in journey.there.legs for run in journey.chunks[leg.chunk][leg.first : leg.last])
    assert sent == 0.75 * 64 * 3
    apart = Place(contiguous(64, 4), Mask(documents=(16, 32, 48)), mesh(4, 1.0), 1, 1, 8, 8)
    assert apart.keys("ring").there.legs == []
