"""Every method of attention over a cut sequence is exact, forward and backward, whatever mask, heads and cut."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from tests.parallel.sequence_bodies import Case, attend
from trainsys.comm.wires import mesh, two_level
from trainsys.sequence.layouts import LAYOUTS
from trainsys.sequence.mask import Mask
from trainsys.sequence.methods import METHODS
from trainsys.testing import RankPool

MASKS = [
    Mask(),
    Mask(False),
    Mask(True, 7),
    Mask(True, 0, (10, 11, 25)),
    Mask(True, 5, (12, 30)),
    Mask(False, 0, (10, 30)),
]
HEADS = [((4, 2), (8, 8)), ((5, 1), (8, 16)), ((6, 6), (16, 8))]


def served(size: int) -> list[str]:
    """Methods that any number of teams on one host can have."""
    return [name for name in METHODS if name not in ("rail", "hierarchical") and not (name == "hybrid" and size < 4)]


def check(ranks: RankPool, size: int, cases: list[Case], most: float) -> list[list[list[torch.Tensor]]]:
    """The results of every rank and case."""
    got = ranks.run(attend, size, cases, timeout_s=100)
    for rank, of_rank in enumerate(got):
        for case, (errors, _) in zip(cases, of_rank, strict=True):
            assert max(errors) < most, (rank, errors, case)
    return [[tensors for _, tensors in of_rank] for of_rank in got]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_methods_are_exact_in_float64(ranks: RankPool, size: int) -> None:
    cases = [
        Case(method, heads=heads, sizes=sizes, layout=layout, mask=mask)
        for i, (mask, method) in enumerate(product(MASKS, served(size)))
        for layout in [list(LAYOUTS)[i % 4]]
        for heads, sizes in [HEADS[i % len(HEADS)]]
    ]
    check(ranks, size, cases, 1e-13)


def test_eight_teams_with_more_rings_than_positions(ranks: RankPool) -> None:
    cases = [Case(method, seq_len=length, heads=(8, 4)) for method in served(8) for length in (17,)]
    check(ranks, 8, cases, 1e-13)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-2)])
def test_methods_round_as_one_process_does(ranks: RankPool, dtype: torch.dtype, most: float) -> None:
    check(ranks, 4, [Case(method, seq_len=128, heads=(8, 4), dtype=dtype) for method in served(4)], most)


def test_two_hosts(ranks: RankPool) -> None:
    wires = two_level(2, 2, 0.05, 0.0075)
    names = [name for name in METHODS if name != "rail"]
    check(ranks, 4, [Case(name, mask=mask, wires=wires) for name in names for mask in (MASKS[0], MASKS[4])], 1e-13)
    check(ranks, 8, [Case(name, wires=two_level(2, 4, 0.05, 0.0075), heads=(8, 2)) for name in METHODS], 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_canonically_no_bit_depends_on_the_method(ranks: RankPool, dtype: torch.dtype) -> None:
    names = [name for name in served(4) if name != "hybrid"]
    masks = [Mask(True, 20), Mask(True, 0, (100, 150))]
    for mask, links in zip(masks, ((mesh(4, 1.0), None), (None,)), strict=True):
        cases = [
            Case(name, 203, (8, 4), mask=mask, dtype=dtype, canonical=True, wires=wires)
            for name in names
            for wires in links
        ]
        for of_rank in check(ranks, 4, cases, 1e-1):
            for case, tensors in zip(cases, of_rank, strict=True):
                assert all(map(torch.equal, tensors, of_rank[0])), case
